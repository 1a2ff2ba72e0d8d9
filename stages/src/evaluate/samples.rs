//! Lists the images of a folder that `pipeline sample` wrote, with their classes.
//!
//! `samples.json` lies beside the images: it holds the class index of each image in the order of
//! the files `000000.png ..`, and the names of the classes. Its other fields are not read here. Files that it does not
//! count, such as `grid.png`, are passed over.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::encode::list::ImageList;
use crate::sample::write::file_name;

/// Why a folder is no folder of samples.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// The folder does not exist, or is a file.
    #[error("{path}: no such folder; give the folder that `pipeline sample --out` wrote", path = .path.display())]
    Missing {
        /// What was given.
        path: PathBuf,
    },
    /// The folder has no `samples.json`.
    #[error("{path}: no samples.json here; give a folder that `pipeline sample` wrote", path = .path.display())]
    NoRecord {
        /// The folder.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{path}: cannot be read: {source}", path = .path.display())]
    Read {
        /// What was being read.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// `samples.json` is not JSON, or lacks a field.
    #[error("{path}: does not say the class of each image ({reason}); run `pipeline sample` again", path = .path.display())]
    Record {
        /// `samples.json`.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// `samples.json` counts no image.
    #[error("{path}: lists no images; run `pipeline sample` with a --count of at least 1", path = .path.display())]
    Empty {
        /// `samples.json`.
        path: PathBuf,
    },
    /// A class index has no name.
    #[error("{path}: image {index} has class {label}, and there are names for {classes} classes; run `pipeline sample` again",
            path = .path.display())]
    Label {
        /// `samples.json`.
        path: PathBuf,
        /// Number of the image.
        index: usize,
        /// Its class index.
        label: i64,
        /// How many classes have names.
        classes: usize,
    },
    /// An image that `samples.json` counts is not there.
    #[error("{path}: missing, though samples.json lists {count} images; the command of `pipeline sample` that made it goes on with it", path = .path.display())]
    MissingImage {
        /// The file.
        path: PathBuf,
        /// How many images are listed.
        count: usize,
    },
}

/// The fields of `samples.json` that say what the images are.
#[derive(Debug, Deserialize)]
struct Record {
    labels: Vec<i64>,
    class_names: Vec<String>,
}

/// The images of a folder of samples, in the order of the files.
#[derive(Debug, Clone)]
pub struct SampleList {
    images: ImageList,
}

impl SampleList {
    /// Reads `samples.json` of `folder`, and checks that every image it lists is there; images are not opened.
    ///
    /// # Errors
    ///
    /// As [`SamplesError`] says.
    pub fn open(folder: &Path) -> Result<Self, SamplesError> {
        if !folder.is_dir() {
            return Err(SamplesError::Missing { path: folder.to_owned() });
        }
        let path = folder.join("samples.json");
        let text = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SamplesError::NoRecord { path: folder.to_owned() },
            _ => SamplesError::Read { path: path.clone(), source },
        })?;
        let Record { labels, class_names } = serde_json::from_slice(&text)
            .map_err(|error| SamplesError::Record { path: path.clone(), reason: error.to_string() })?;
        if labels.is_empty() {
            return Err(SamplesError::Empty { path });
        }
        let count = labels.len();
        let mut files = Vec::with_capacity(count);
        for (index, label) in labels.into_iter().enumerate() {
            let classes = class_names.len();
            let known = i32::try_from(label).ok().filter(|_| (0..classes as i64).contains(&label));
            let known = known.ok_or_else(|| SamplesError::Label { path: path.clone(), index, label, classes })?;
            let key = file_name(index as u64);
            let image = folder.join(&key);
            if !image.try_exists().map_err(|source| SamplesError::Read { path: image.clone(), source })? {
                return Err(SamplesError::MissingImage { path: image, count });
            }
            files.push((key, known));
        }
        Ok(Self { images: ImageList::of_files(folder, files, class_names) })
    }

    /// The images, at least 1, in the order of the files; the classes are all those of the run.
    pub fn images(&self) -> &ImageList {
        &self.images
    }

    /// Names of the classes that have samples, sorted.
    pub fn sampled_classes(&self) -> Vec<&str> {
        let images = (0..).map_while(|position| self.images.image(position));
        let mut names: Vec<_> = images.map(|image| self.images.classes()[image.label as usize].as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Place;

    /// A folder with `samples.json` of this text and so many (empty) images.
    fn folder(record: &str, images: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("samples.json"), record).unwrap();
        for index in 0..images {
            fs::write(folder.path().join(file_name(index as u64)), b"").unwrap();
        }
        folder
    }

    fn refusal(record: &str, images: usize) -> String {
        SampleList::open(folder(record, images).path()).unwrap_err().to_string()
    }

    #[test]
    fn images_come_in_the_order_of_the_files_with_their_classes() {
        let folder = folder(r#"{"labels": [2, 0, 2], "class_names": ["a", "b", "c"], "seed": 7}"#, 4);
        let list = SampleList::open(folder.path()).unwrap();
        assert_eq!((list.images().len(), list.sampled_classes()), (3, vec!["a", "c"]));
        let images: Vec<_> = (0..).map_while(|position| list.images().image(position)).collect();
        let seen: Vec<_> = images.iter().map(|image| (image.key.as_str(), image.label)).collect();
        assert_eq!(seen, [("000000.png", 2), ("000001.png", 0), ("000002.png", 2)]);
        assert_eq!(images[2].place, Place::File(folder.path().join("000002.png")));
    }

    #[test]
    fn what_is_no_folder_of_samples_is_refused_with_its_place() {
        let empty = tempfile::tempdir().unwrap();
        let open = |path: &Path| SampleList::open(path).unwrap_err().to_string();
        assert!(open(&empty.path().join("nowhere")).contains("nowhere: no such folder"));
        assert!(open(empty.path()).contains("no samples.json"));
        // A record of before there were labels by image: the scheme stood under the name.
        assert!(refusal(r#"{"labels": "random"}"#, 0).contains("does not say the class of each image"));
        assert!(refusal(r#"{"labels": [0]}"#, 1).contains("class_names"));
        assert!(refusal(r#"{"labels": [], "class_names": ["a"]}"#, 0).contains("lists no images"));
        assert!(refusal(r#"{"labels": [0, 1], "class_names": ["a"]}"#, 2).contains("image 1 has class 1"));
        assert!(refusal(r#"{"labels": [-1], "class_names": ["a"]}"#, 1).contains("class -1"));
        assert!(refusal(r#"{"labels": [0, 0], "class_names": ["a"]}"#, 1).contains("000001.png: missing"));
    }
}
