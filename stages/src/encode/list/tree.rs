//! Lists a class-per-folder tree: `<root>/<class>/.../<name>.jpg`.
//!
//! The folders of the first level, sorted, are the classes, and files below them may be nested. Names are compared as
//! Python compares strings, so the list equals that of the published Python preprocessing. What counts as an image here
//! is its extension (jpg, jpeg, png, any case); what the file *is* is decided by its content, when it is decoded. Names
//! that begin with a dot are passed over, because file managers and notebooks leave such files and folders behind.
//! Symbolic links are followed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{ImageList, ListError, Numbering, wnids};

impl ImageList {
    /// Lists a class-per-folder tree in the source's order: sorted by key. Labels are ImageNet's where every folder is
    /// one of its wnids and `numbering` allows it, else the numbers of the sorted folders.
    ///
    /// # Errors
    /// What is wrong with the tree: no such folder, images outside of class folders, a class without images, ..
    pub fn scan(root: &Path, numbering: Numbering) -> Result<Self, ListError> {
        must_be_folder(root)?;
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

        let folders: Vec<String> = class_folders.into_iter().map(|folder| folder.name).collect();
        let fixed: Option<Vec<i32>> = match numbering {
            Numbering::ImageNet => wnids::fixed_labels(&folders),
            Numbering::Folders => None,
        };
        keys.sort_unstable();
        let labelled = keys.into_iter().map(|(key, folder)| match &fixed {
            Some(labels) => (key, labels[folder]),
            None => (key, folder as i32),
        });
        let classes = match &fixed {
            Some(_) => wnids::names(),
            None => folders,
        };
        Ok(Self::of_files(root, labelled, classes))
    }
}

pub(super) fn must_be_folder(root: &Path) -> Result<(), ListError> {
    let metadata = fs::metadata(root).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ListError::Missing { path: root.to_owned() },
        _ => ListError::Io { path: root.to_owned(), source },
    })?;
    match metadata.is_dir() {
        true => Ok(()),
        false => Err(ListError::NotAFolder { path: root.to_owned() }),
    }
}

pub(super) struct Child {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) is_dir: bool,
}

/// The entries of a folder, sorted by name, without those whose name begins with a dot; links are followed.
pub(super) fn children(folder: &Path) -> Result<Vec<Child>, ListError> {
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

pub(super) fn has_image_extension(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}
