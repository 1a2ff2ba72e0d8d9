//! Lists the images of a class-per-folder tree in the order of the dataset.
//!
//! `<root>/<class>/.../<name>.jpg`: the folders of the first level, sorted, are the classes, and files below them may
//! be nested. Names are compared as Python compares strings, so the list equals that of the published Python
//! preprocessing. What counts as an image here is its extension (jpg, jpeg, png, any case); what the file *is* is decided
//! by its content, when it is decoded. Names that begin with a dot are passed over, because file managers and notebooks
//! leave such files and folders behind. Symbolic links are followed.
//!
//! The dataset's order is a seeded permutation of the sorted files, so that a sequential reader sees the classes mixed.
//! Nothing of a file but its name is read here: sizes and contents are not part of [`ImageList::hash`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pipeline::{BoxError, Source, Stop};
use xxhash_rust::xxh3::Xxh3;

use crate::data::ImageRef;
use crate::splitmix::SplitMix64;

/// Why a folder could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The folder does not exist.
    #[error("{path}: no such folder; give a folder that holds one folder of images for each class", path = .path.display())]
    Missing {
        /// What was given.
        path: PathBuf,
    },
    /// It is a file.
    #[error("{path}: this is a file; give a folder that holds one folder of images for each class", path = .path.display())]
    NotAFolder {
        /// What was given.
        path: PathBuf,
    },
    /// Images lie in the folder itself, and so have no class.
    #[error("{path}: {count} images lie here, outside of any class folder (the first is {first}); move them into one folder for each class",
            path = .path.display())]
    Unlabelled {
        /// The folder.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Name of the first of them.
        first: String,
    },
    /// A class has no images.
    #[error("{path}: this class folder holds no jpg, jpeg or png file ({ignored} other files were passed over); add images or remove the folder, which else would shift the class indices",
            path = .path.display())]
    EmptyClass {
        /// The class folder.
        path: PathBuf,
        /// Files with other extensions.
        ignored: usize,
    },
    /// There is no image at all.
    #[error("{path}: no images here ({ignored} other files were passed over); expected jpg, jpeg or png files in one folder for each class",
            path = .path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
        /// Files with other extensions.
        ignored: usize,
    },
    /// A name is not UTF-8, and so cannot be a key of the dataset.
    #[error("{path}: the name is not UTF-8; rename the file", path = .path.display())]
    NotUtf8 {
        /// The file or folder.
        path: PathBuf,
    },
    /// A symbolic link leads to a folder that contains it.
    #[error("{path}: this link leads back to a folder that contains it; remove the link", path = .path.display())]
    LinkCycle {
        /// The link.
        path: PathBuf,
    },
    /// More files than a sample index (u32) or classes than a label (i32) can count.
    #[error("{path}: {count} images in {classes} classes, of which at most 4294967295 in 2147483647 can be indexed", path = .path.display())]
    TooMany {
        /// The folder.
        path: PathBuf,
        /// Files found.
        count: usize,
        /// Classes found.
        classes: usize,
    },
    /// The file system refused.
    #[error("{path}: cannot be listed: {source}", path = .path.display())]
    Io {
        /// What was being read.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The images of a dataset in the dataset's order.
#[derive(Debug, Clone)]
pub struct ImageList {
    root: PathBuf,
    entries: Vec<Entry>,
    classes: Vec<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    key: String,
    label: i32,
    source_index: u32,
}

impl ImageList {
    /// Lists `root` in the source's order: sorted by key.
    pub fn scan(root: &Path) -> Result<Self, ListError> {
        let metadata = fs::metadata(root).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ListError::Missing { path: root.to_owned() },
            _ => ListError::Io { path: root.to_owned(), source },
        })?;
        if !metadata.is_dir() {
            return Err(ListError::NotAFolder { path: root.to_owned() });
        }

        let mut class_folders = Vec::new();
        let mut unlabelled = Vec::new();
        let mut ignored = 0;
        for child in children(root)? {
            match (child.is_dir, has_image_extension(&child.name)) {
                (true, _) => class_folders.push(child),
                (false, true) => unlabelled.push(child.name),
                (false, false) => ignored += 1,
            }
        }
        if let Some(first) = unlabelled.first() {
            return Err(ListError::Unlabelled { path: root.to_owned(), count: unlabelled.len(), first: first.clone() });
        }

        let mut keys = Vec::new();
        let mut without_images = None;
        let root_id = canonical(root)?;
        for (label, folder) in class_folders.iter().enumerate() {
            let before = keys.len();
            let mut walk = Walk { ignored: 0, ancestors: vec![root_id.clone()], found: Vec::new() };
            walk.folder(&folder.path, &folder.name)?;
            keys.extend(walk.found.into_iter().map(|key| (key, label)));
            ignored += walk.ignored;
            if keys.len() == before {
                without_images
                    .get_or_insert(ListError::EmptyClass { path: folder.path.clone(), ignored: walk.ignored });
            }
        }
        if keys.is_empty() {
            return Err(ListError::Empty { path: root.to_owned(), ignored });
        }
        if let Some(error) = without_images {
            return Err(error);
        }
        if u32::try_from(keys.len()).is_err() || i32::try_from(class_folders.len()).is_err() {
            return Err(ListError::TooMany { path: root.to_owned(), count: keys.len(), classes: class_folders.len() });
        }

        keys.sort_unstable();
        let entries = (0..)
            .zip(keys)
            .map(|(source_index, (key, label))| Entry { key, label: label as i32, source_index })
            .collect();
        Ok(Self {
            root: root.to_owned(),
            entries,
            classes: class_folders.into_iter().map(|folder| folder.name).collect(),
        })
    }

    /// The files of `root` with these keys and labels (indices into `classes`), in this order; at most 4294967295.
    /// Nothing is looked for on disk.
    pub fn of_files(root: &Path, files: impl IntoIterator<Item = (String, i32)>, classes: Vec<String>) -> Self {
        let entries = (0..).zip(files).map(|(source_index, (key, label))| Entry { key, label, source_index });
        Self { root: root.to_owned(), entries: entries.collect(), classes }
    }

    /// Puts the list into the seeded order of [`permutation`].
    #[must_use]
    pub fn permuted(mut self, seed: u64) -> Self {
        let mut sorted: Vec<_> = self.entries.drain(..).map(Some).collect();
        self.entries = permutation(sorted.len(), seed)
            .into_iter()
            .map(|index| sorted[index as usize].take().expect("a permutation names each index once"))
            .collect();
        self
    }

    /// Keeps the first `count` images of the present order; the classes stay all.
    #[must_use]
    pub fn limited(mut self, count: usize) -> Self {
        self.entries.truncate(count);
        self
    }

    /// Keeps of each class the first image in the present order.
    #[must_use]
    pub fn first_of_each_class(mut self) -> Self {
        let mut seen = vec![false; self.classes.len()];
        self.entries.retain(|entry| !std::mem::replace(&mut seen[entry.label as usize], true));
        self
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is no image, which only [`Self::limited`] to 0 can bring about.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names of the class folders, sorted; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The image at `position` of the dataset's order; `None` past the end.
    pub fn image(&self, position: u64) -> Option<ImageRef> {
        let entry = self.entries.get(usize::try_from(position).ok()?)?;
        Some(ImageRef {
            position,
            source_index: entry.source_index,
            key: entry.key.clone(),
            label: entry.label,
            path: self.root.join(&entry.key),
        })
    }

    /// xxh3 of the class names and of all keys in order: the same for two lists that give the same dataset order,
    /// wherever their root folders are.
    pub fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        let names = self.classes.iter().chain(self.entries.iter().map(|entry| &entry.key));
        hash.update(&(self.classes.len() as u64).to_le_bytes());
        for name in names {
            // The length in front keeps two names from running together.
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
        }
        hash.digest()
    }
}

/// The seeded order: element i says which of `0..len` comes at position i.
///
/// Fisher-Yates from the back; step i draws from `0..=i` as the upper half of `r * (i + 1)`, where r is output number i
/// of [`SplitMix64`] started at `seed`. The draw's bias is below (i + 1) / 2^64.
pub fn permutation(len: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    for i in (1..len).rev() {
        let draw = u128::from(SplitMix64::output(seed, i as u64)) * (i as u128 + 1);
        order.swap(i, (draw >> 64) as usize);
    }
    order
}

struct Child {
    name: String,
    path: PathBuf,
    is_dir: bool,
}

/// The entries of a folder, sorted by name, without those whose name begins with a dot; links are followed.
fn children(folder: &Path) -> Result<Vec<Child>, ListError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ListError::Io { path, source }
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let entry = entry.map_err(failed(folder))?;
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|_| ListError::NotUtf8 { path: path.clone() })?;
        if name.starts_with('.') {
            continue;
        }
        let mut kind = entry.file_type().map_err(failed(&path))?;
        if kind.is_symlink() {
            kind = fs::metadata(&path).map_err(failed(&path))?.file_type();
        }
        found.push(Child { name, path, is_dir: kind.is_dir() });
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The files below one class folder.
struct Walk {
    found: Vec<String>,
    ignored: usize,
    /// Real paths of the folders that are open, to notice a link that leads back.
    ancestors: Vec<PathBuf>,
}

impl Walk {
    fn folder(&mut self, path: &Path, key: &str) -> Result<(), ListError> {
        let real = canonical(path)?;
        if self.ancestors.contains(&real) {
            return Err(ListError::LinkCycle { path: path.to_owned() });
        }
        self.ancestors.push(real);
        for child in children(path)? {
            let key = format!("{key}/{}", child.name);
            if child.is_dir {
                self.folder(&child.path, &key)?;
            } else if has_image_extension(&child.name) {
                self.found.push(key);
            } else {
                self.ignored += 1;
            }
        }
        self.ancestors.pop();
        Ok(())
    }
}

fn canonical(path: &Path) -> Result<PathBuf, ListError> {
    fs::canonicalize(path).map_err(|source| ListError::Io { path: path.to_owned(), source })
}

fn has_image_extension(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Source of a list's images, in order, from a position on.
#[derive(Debug)]
pub struct ListImages {
    list: ImageList,
    next: u64,
}

impl ListImages {
    /// All images from position `first` on (0 for a new dataset; a later one to continue).
    pub fn starting_at(list: ImageList, first: u64) -> Self {
        Self { list, next: first }
    }
}

impl Source for ListImages {
    type Item = ImageRef;

    fn next(&mut self, _stop: &Stop) -> Result<Option<ImageRef>, BoxError> {
        let image = self.list.image(self.next);
        self.next += 1;
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

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
        let root =
            tree(&["b/2.JPEG", "b/deep/1.png", "b/.hidden.jpg", "a/x.jpg", "a/notes.txt", "a b/y.PNG", "README"]);
        let list = ImageList::scan(root.path()).unwrap();
        assert_eq!(list.classes(), ["a", "a b", "b"]);
        // A space sorts before the slash, as in Python's sorted().
        let expected = [("a b/y.PNG", 1), ("a/x.jpg", 0), ("b/2.JPEG", 2), ("b/deep/1.png", 2)];
        assert_eq!(keys(&list), expected.map(|(key, label)| (key.to_owned(), label)));
        let image = list.image(2).unwrap();
        assert_eq!((image.position, image.source_index, image.path), (2, 2, root.path().join("b/2.JPEG")));
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
        let sorted = ImageList::scan(root.path()).unwrap();
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
        let hash = |root: &tempfile::TempDir| ImageList::scan(root.path()).unwrap().hash();
        assert_eq!(hash(&here), hash(&there));
        assert_ne!(hash(&here), hash(&tree(&["a/1.jpg", "b/3.png"])));
    }

    #[test]
    fn links_are_followed_and_cycles_are_refused() {
        use std::os::unix::fs::symlink;
        let real = tree(&["cats/1.jpg"]);
        let root = tree(&["dogs/2.jpg"]);
        symlink(real.path().join("cats"), root.path().join("cats")).unwrap();
        assert_eq!(ImageList::scan(root.path()).unwrap().len(), 2);
        symlink(root.path(), root.path().join("dogs/again")).unwrap();
        let error = ImageList::scan(root.path()).unwrap_err();
        assert!(matches!(error, ListError::LinkCycle { .. }), "{error}");
    }

    #[test]
    fn each_way_of_giving_the_wrong_folder_has_its_own_sentence() {
        let message = |path: &Path| ImageList::scan(path).unwrap_err().to_string();
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
}
