//! Why images could not be listed.

use std::io;
use std::path::PathBuf;

use shards::tar::TarError;

use super::brace::BraceError;
use super::ground_truth::GroundTruthError;

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
    #[error("{path}: {count} images lie here, outside of any class folder (the first is {first}); move them into one folder for each class, or give ImageNet's labels by --labels",
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
    /// A pattern of the shell.
    #[error(
        "{pattern}: * and ? are not expanded; write braces, such as 'train-{{0000..1023}}.tar', or name the folder of the tars"
    )]
    Glob {
        /// What was given.
        pattern: String,
    },
    /// A pattern of tars is malformed.
    #[error(transparent)]
    Pattern(#[from] BraceError),
    /// A tar cannot be indexed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A folder holds tars and folders.
    #[error("{tar} lies beside the folder {folder}: name the tars by a pattern, or move them away from the class folders",
            tar = .tar.display(), folder = .folder.display())]
    TarsAndFolders {
        /// The first tar.
        tar: PathBuf,
        /// The first folder.
        folder: PathBuf,
    },
    /// A name is too long for a key of the dataset.
    #[error("{path}: the member {key} makes a key of more than {max} bytes; rename it", path = .path.display())]
    LongKey {
        /// The tar.
        path: PathBuf,
        /// Tar and member.
        key: String,
        /// Longest key.
        max: usize,
    },
    /// A label without names is too large to count up to.
    #[error(
        "{key}: the label {label} is larger than {max}, and no names of classes were given; give them, or number the classes from 0"
    )]
    LargeLabel {
        /// The sample.
        key: String,
        /// Its label.
        label: i32,
        /// Largest that is named by its number.
        max: i32,
    },
    /// A label is beyond the names that were given.
    #[error("{key}: label {label} is not below the {classes} class names that were given; give more names")]
    LabelWithoutName {
        /// The sample.
        key: String,
        /// Its label.
        label: i32,
        /// Names.
        classes: usize,
    },
    /// A folder that should be flat has no images in itself.
    #[error("{path}: no image lies here itself ({folders} folders do); --labels is for a flat folder of images, leave it out where each class has its folder",
            path = .path.display())]
    Flat {
        /// The folder.
        path: PathBuf,
        /// Folders in it.
        folders: usize,
    },
    /// The labels of a flat folder cannot be had.
    #[error(transparent)]
    GroundTruth(#[from] GroundTruthError),
    /// The file system refused.
    #[error("{path}: cannot be listed: {source}", path = .path.display())]
    Io {
        /// What was being read.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}
