//! Files that a command writes at its end: whether it can is asked at its beginning.

use std::path::Path;

use anyhow::{Result, bail};

/// Refuses a file in a folder that does not exist; what is there is replaced.
pub(crate) fn possible(flag: &str, path: &Path) -> Result<()> {
    // The parent of a bare name is "".
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("{flag} {}: there is no folder {}; make it first", path.display(), folder.display());
    }
    if path.is_dir() {
        bail!("{flag} {}: this is a folder; name a file", path.display());
    }
    Ok(())
}

/// Refuses that, and a file that exists.
pub(crate) fn free(flag: &str, path: &Path) -> Result<()> {
    possible(flag, path)?;
    if path.exists() {
        bail!("{flag} {}: it exists already; remove it, or name another file", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_needs_a_folder_and_a_new_one_a_free_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("there"), "").unwrap();
        possible("--out", &at("there")).unwrap();
        free("--out", &at("new")).unwrap();
        free("--out", Path::new("surely-no-such-file")).unwrap();
        let refused = |ended: Result<()>| ended.unwrap_err().to_string();
        assert!(refused(free("--out", &at("there"))).ends_with("it exists already; remove it, or name another file"));
        assert!(refused(possible("--out", &at("no/new"))).ends_with("no; make it first"));
        assert!(refused(possible("--out", folder.path())).ends_with("this is a folder; name a file"));
    }
}
