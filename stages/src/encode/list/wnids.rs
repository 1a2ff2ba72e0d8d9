//! The 1,000 classes of ImageNet-1k: the label of a folder that is named by its WordNet id.
//!
//! Labels are the positions of the sorted wnids, as torchvision, timm and the published models have them. The
//! development kit of ILSVRC2012 counts its classes in another order, from 1: its ground truth needs that number.
//! `wnids.tsv` lists wnid, that number and the name in `map_clsloc.txt` of the kit (underscores as spaces), in the
//! order of the labels.
//!
//! With this table a folder of a few classes keeps the labels of the full dataset, where counting folders would
//! renumber them.

use std::sync::LazyLock;

/// One class of ImageNet-1k; its label is its position in [`classes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// WordNet id: `n` and eight digits.
    pub wnid: &'static str,
    /// `ILSVRC2012_ID` of the development kit, 1 to 1000.
    pub ilsvrc_id: u16,
    /// Short English name, unique.
    pub name: &'static str,
}

static CLASSES: LazyLock<Vec<Class>> = LazyLock::new(|| {
    let class = |line: &'static str| {
        let mut fields = line.split('\t');
        Some(Class { wnid: fields.next()?, ilsvrc_id: fields.next()?.parse().ok()?, name: fields.next()? })
    };
    include_str!("wnids.tsv").lines().map(|line| class(line).expect("a test reads every line of the table")).collect()
});

/// The classes in the order of their labels, 0 to 999: sorted by wnid.
pub fn classes() -> &'static [Class] {
    &CLASSES
}

/// What a person reads for a class: the short English name of a wnid of the 1,000, or else the class name itself.
pub fn readable(class: &str) -> &str {
    class_of(class).and_then(|label| classes().get(label as usize)).map_or(class, |known| known.name)
}

/// All wnids in the order of their labels: the class table of a dataset.
pub fn names() -> Vec<String> {
    classes().iter().map(|class| class.wnid.to_owned()).collect()
}

/// The label of a wnid, 0 to 999; `None` if it is none of the 1,000.
pub fn class_of(wnid: &str) -> Option<i32> {
    classes().binary_search_by(|class| class.wnid.cmp(wnid)).ok().map(|label| label as i32)
}

/// The label of an `ILSVRC2012_ID`, 0 to 999; `None` if the id is not 1 to 1000.
pub fn class_of_id(ilsvrc_id: u16) -> Option<i32> {
    classes().iter().position(|class| class.ilsvrc_id == ilsvrc_id).map(|label| label as i32)
}

/// The label of each folder if every one is named by a wnid of the 1,000; `None` otherwise, or if there is no folder.
pub fn fixed_labels(folders: &[String]) -> Option<Vec<i32>> {
    if folders.is_empty() {
        return None;
    }
    folders.iter().map(|folder| class_of(folder)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wnid_reads_as_its_name_and_any_other_class_as_itself() {
        assert_eq!(readable("n01443537"), "goldfish");
        assert_eq!(readable("n99999999"), "n99999999");
        assert_eq!(names()[1], "n01443537");
    }

    #[test]
    fn the_table_is_sorted_complete_and_without_duplicates() {
        assert_eq!(classes().len(), 1000);
        assert!(classes().is_sorted_by(|a, b| a.wnid < b.wnid));
        for class in classes() {
            let digits = class.wnid.strip_prefix('n').unwrap();
            assert!(digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{class:?}");
            assert!(!class.name.is_empty() && class.name.trim() == class.name, "{class:?}");
        }
        let mut ids: Vec<_> = classes().iter().map(|class| class.ilsvrc_id).collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(1..=1000));
        let mut names: Vec<_> = classes().iter().map(|class| class.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 1000);
    }

    #[test]
    fn well_known_classes_have_their_labels() {
        let known = [("n01440764", 0, "tench"), ("n02099601", 207, "golden retriever"), ("n02119789", 278, "kit fox")];
        for (wnid, label, name) in known.into_iter().chain([("n15075141", 999, "toilet tissue")]) {
            assert_eq!(class_of(wnid), Some(label));
            assert_eq!(classes()[label as usize].name, name);
        }
    }

    #[test]
    fn the_first_validation_images_have_their_labels_by_the_number_of_the_development_kit() {
        // The first ten of ILSVRC2012_validation_ground_truth.txt, and of caffe's val.txt.
        let ids = [490, 361, 171, 822, 297, 482, 13, 704, 599, 164];
        assert_eq!(ids.map(|id| class_of_id(id).unwrap()), [65, 970, 230, 809, 516, 57, 334, 415, 674, 332]);
        assert_eq!((class_of_id(0), class_of_id(1001)), (None, None));
    }

    #[test]
    fn labels_are_fixed_only_if_every_folder_is_a_class() {
        let labels =
            |folders: &[&str]| fixed_labels(&folders.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(labels(&["n02119789", "n01440764"]), Some(vec![278, 0]));
        assert_eq!(labels(&["n02119789", "cats"]), None);
        assert_eq!(labels(&["n00000000"]), None);
        assert_eq!(labels(&["N02119789"]), None);
        assert_eq!(labels(&[]), None);
    }
}
