use std::collections::BTreeSet;
use std::fs;

use super::*;

fn tree(files: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in files {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }
    root
}

fn keys(list: &ImageList) -> Vec<(String, i32)> {
    (0..list.len() as u64).map(|p| list.image(p).unwrap()).map(|image| (image.key, image.label)).collect()
}

#[test]
fn files_are_sorted_by_key_and_labelled_by_sorted_folder() {
    let root = tree(&["b/2.JPEG", "b/deep/1.png", "b/.hidden.jpg", "a/x.jpg", "a/notes.txt", "a b/y.PNG", "README"]);
    let list = ImageList::scan(root.path(), Numbering::ImageNet).unwrap();
    assert_eq!(list.classes(), ["a", "a b", "b"]);
    // A space sorts before the slash, as in Python's sorted().
    let expected = [("a b/y.PNG", 1), ("a/x.jpg", 0), ("b/2.JPEG", 2), ("b/deep/1.png", 2)];
    assert_eq!(keys(&list), expected.map(|(key, label)| (key.to_owned(), label)));
    let image = list.image(2).unwrap();
    assert_eq!((image.position, image.source_index, image.place), (2, 2, Place::File(root.path().join("b/2.JPEG"))));
    assert_eq!(list.image(4), None);
}

#[test]
fn the_permutation_holds_every_index_once_and_is_pinned() {
    for (len, seed) in [(0, 0), (1, 3), (2, 3), (1000, 0), (1000, 1)] {
        let order = permutation(len, seed);
        assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (0..len as u32).collect());
    }
    assert_ne!(permutation(1000, 0), permutation(1000, 1));
    assert_eq!(permutation(8, 0), PERMUTATION_OF_8);
}

/// Changing this changes every dataset that was ever written.
const PERMUTATION_OF_8: [u32; 8] = [5, 2, 4, 3, 0, 7, 1, 6];

#[test]
fn permuting_keeps_source_indices_and_limit_takes_the_first() {
    let root = tree(&["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "b/5.jpg"]);
    let sorted = ImageList::scan(root.path(), Numbering::ImageNet).unwrap();
    let permuted = sorted.clone().permuted(5);
    for position in 0..5 {
        let image = permuted.image(position).unwrap();
        assert_eq!(image.position, position);
        assert_eq!(image.key, sorted.image(image.source_index.into()).unwrap().key);
    }
    let limited = permuted.clone().limited(2);
    assert_eq!(keys(&limited), keys(&permuted)[..2]);
    assert_eq!(limited.classes().len(), 2);
    let firsts = permuted.clone().first_of_each_class();
    let mut of_each = Vec::new();
    for class in ["a", "b"] {
        of_each.extend(keys(&permuted).into_iter().find(|(key, _)| key.starts_with(class)));
    }
    let mut found = keys(&firsts);
    found.sort_unstable();
    assert_eq!(found, of_each);
    let hashes = [sorted.hash(), permuted.hash(), limited.hash()];
    assert_eq!(hashes.iter().collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn the_hash_does_not_depend_on_where_the_tree_is() {
    let files = ["a/1.jpg", "b/2.png"];
    let (here, there) = (tree(&files), tree(&files));
    let hash = |root: &tempfile::TempDir| ImageList::scan(root.path(), Numbering::ImageNet).unwrap().hash();
    assert_eq!(hash(&here), hash(&there));
    assert_ne!(hash(&here), hash(&tree(&["a/1.jpg", "b/3.png"])));
}

#[test]
fn links_are_followed_and_cycles_are_refused() {
    use std::os::unix::fs::symlink;
    let real = tree(&["cats/1.jpg"]);
    let root = tree(&["dogs/2.jpg"]);
    symlink(real.path().join("cats"), root.path().join("cats")).unwrap();
    assert_eq!(ImageList::scan(root.path(), Numbering::ImageNet).unwrap().len(), 2);
    symlink(root.path(), root.path().join("dogs/again")).unwrap();
    let error = ImageList::scan(root.path(), Numbering::ImageNet).unwrap_err();
    assert!(matches!(error, ListError::LinkCycle { .. }), "{error}");
}

#[test]
fn each_way_of_giving_the_wrong_folder_has_its_own_sentence() {
    let message = |path: &Path| ImageList::scan(path, Numbering::ImageNet).unwrap_err().to_string();
    let root = tree(&["a/1.jpg"]);
    assert!(message(&root.path().join("absent")).contains("no such folder"));
    assert!(message(&root.path().join("a/1.jpg")).contains("this is a file"));
    assert!(message(&root.path().join("a")).contains("1 images lie here, outside of any class folder"));
    assert!(message(tree(&["a/1.gif", "b/c.txt", "d"]).path()).contains("no images here (3 other files"));
    assert!(message(tree(&[]).path()).contains("no images here (0 other files"));
    for empty in [&["a/1.jpg", "b/2.gif"], &["b/1.jpg", "a/2.gif"]] {
        assert!(message(tree(empty).path()).contains("this class folder holds no jpg, jpeg or png file (1 other"));
    }
}
