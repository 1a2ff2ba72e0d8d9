//! Lists a flat folder of images whose labels are in a file: ImageNet's `val`.

use std::path::Path;

use super::tree::{children, has_image_extension, must_be_folder};
use super::{ImageList, ListError, ground_truth, wnids};

impl ImageList {
    /// Lists the images that lie in `root` itself, sorted by name, with the labels of the file `labels`
    /// (`list/ground_truth.rs` says what it may hold). The classes are ImageNet's.
    ///
    /// # Errors
    /// A folder without images, or labels that do not fit them.
    pub fn flat(root: &Path, labels: &Path) -> Result<Self, ListError> {
        must_be_folder(root)?;
        let all = children(root)?;
        let files: Vec<String> = all
            .iter()
            .filter(|child| !child.is_dir && has_image_extension(&child.name))
            .map(|child| child.name.clone())
            .collect();
        if files.is_empty() {
            return Err(ListError::Flat { path: root.to_owned(), folders: all.iter().filter(|c| c.is_dir).count() });
        }
        if u32::try_from(files.len()).is_err() {
            return Err(ListError::TooMany { path: root.to_owned(), count: files.len(), classes: 0 });
        }
        let labels = ground_truth::labels(labels, &files)?;
        Ok(Self::of_files(root, files.into_iter().zip(labels), wnids::names()))
    }
}
