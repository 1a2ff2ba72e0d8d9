//! The labels of ImageNet's flat validation folder, `ILSVRC2012_val_00000001.JPEG` and on, from a list beside it.
//!
//! Four kinds of list are known, and told apart by their first line alone:
//!
//! | first line | kind | a class is |
//! |---|---|---|
//! | has a comma | Kaggle's `LOC_val_solution.csv`: `ImageId,PredictionString` | the wnid at the beginning of the second field |
//! | has two words or more | caffe's `val.txt`: `name class` | a label 0 to 999, or a wnid |
//! | has one word | one class per line, line i for image i | a wnid, or an `ILSVRC2012_ID` 1 to 1000 |
//!
//! So a number after a name is a label from 0, and a number alone is the number of the development kit, as in its
//! `ILSVRC2012_validation_ground_truth.txt`; nothing is guessed from the values. A wrong guess would still show in most
//! lists: a number 0 alone, or 1000 after a name, is an error.
//!
//! A list with names may have more lines than there are files. A list without names must have one for each file, and
//! image i is the file whose name ends in the number i. Names are compared without folder and without the extension of
//! an image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::wnids::{class_of, class_of_id};

/// Longest list that is read, in bytes; that of Kaggle has 3 MB.
pub const MAX_LIST_LEN: u64 = 64 << 20;

/// Why a list gives no labels. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum GroundTruthError {
    /// The file system refused, or the text is not UTF-8.
    #[error("{path}: cannot be read: {source}; give the list of the validation labels", path = .path.display())]
    Read {
        /// The list.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is far longer than a list can be.
    #[error("{path}: has more than {MAX_LIST_LEN} bytes; give the list of the validation labels", path = .path.display())]
    TooLong {
        /// The list.
        path: PathBuf,
    },
    /// A list without names has another number of lines than there are files.
    #[error("{path}: line {lines} is the last of a list without names, and there are {files} files; give the list of these files, or one with names",
            path = .path.display())]
    Lines {
        /// The list.
        path: PathBuf,
        /// Its lines.
        lines: usize,
        /// The files.
        files: usize,
    },
    /// A line does not look like the first one.
    #[error("{path}: line {line} is {got:?} where {expected} is expected; correct it", path = .path.display())]
    Malformed {
        /// The list.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What is expected.
        expected: &'static str,
        /// The line, at most its first 80 characters.
        got: String,
    },
    /// A word that should be a class is none.
    #[error("{path}: line {line} has the class {got:?}, which is not one of the 1,000 wnids of ImageNet-1k; correct it", path = .path.display())]
    UnknownWnid {
        /// The list.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The word, at most its first 80 characters.
        got: String,
    },
    /// A number that is no class.
    #[error("{path}: line {line} has the class {got}, and {allowed}; correct it", path = .path.display())]
    Range {
        /// The list.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The number.
        got: u64,
        /// Which numbers are classes in this kind of list.
        allowed: &'static str,
    },
    /// A name stands on two lines.
    #[error("{path}: line {line} names {name:?}, as line {first} does; keep one of them", path = .path.display())]
    Twice {
        /// The list.
        path: PathBuf,
        /// The second line.
        line: usize,
        /// The first line.
        first: usize,
        /// The name, without folder and extension.
        name: String,
    },
    /// A file is not in the list.
    #[error("{path}: none of the lines 1 to {lines} gives a label for {file:?}; give the list of these files, or remove the file", path = .path.display())]
    NoLabel {
        /// The list.
        path: PathBuf,
        /// Its lines.
        lines: usize,
        /// The file.
        file: String,
    },
}

/// The label of each of `files`, 0 to 999, by the list at `path`.
pub fn labels(path: &Path, files: &[String]) -> Result<Vec<i32>, GroundTruthError> {
    let read = |source| GroundTruthError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_LIST_LEN + 1).read_to_string(&mut text)).map_err(read)?;
    if text.len() as u64 > MAX_LIST_LEN {
        return Err(GroundTruthError::TooLong { path: path.to_owned() });
    }
    labels_of(&text, path, files)
}

/// The label of each of `files`, 0 to 999, by the text of a list. `path` is for messages.
pub fn labels_of(text: &str, path: &Path, files: &[String]) -> Result<Vec<i32>, GroundTruthError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_end();
    let list = List { path, lines: text.lines().count() };
    let first = text.lines().next().unwrap_or_default();
    let lines = (1..).zip(text.lines().map(str::trim));
    if first.contains(',') {
        let header = usize::from(first.trim_start().starts_with("ImageId,"));
        let entry = |line, text: &'_ str| {
            let wnid = text.split_once(',').map(|(name, rest)| (name, rest.split_whitespace().next()));
            let Some((name, Some(wnid))) = wnid else {
                return Err(list.malformed(line, "`ImageId,wnid ..`", text));
            };
            Ok((stem(name.trim()).to_owned(), class_of(wnid).ok_or_else(|| list.unknown(line, wnid))?))
        };
        let entries = lines.skip(header).map(|(line, text)| Ok((line, entry(line, text)?)));
        list.by_name(entries, files)
    } else if first.split_whitespace().count() > 1 {
        let entry = |line, text: &'_ str| {
            let Some((name, class)) = text.rsplit_once(char::is_whitespace) else {
                return Err(list.malformed(line, "`name class`", text));
            };
            let label = list.class(line, class, "the labels after names are 0 to 999", |number| {
                i32::try_from(number).ok().filter(|label| *label < 1000)
            })?;
            Ok((stem(name.trim()).to_owned(), label))
        };
        list.by_name(lines.map(|(line, text)| Ok((line, entry(line, text)?))), files)
    } else {
        let class = |(line, text): (usize, &str)| match text.split_whitespace().collect::<Vec<_>>()[..] {
            [word] => list.class(line, word, "the numbers of the development kit are 1 to 1000", |number| {
                class_of_id(u16::try_from(number).ok()?)
            }),
            _ => Err(list.malformed(line, "one class", text)),
        };
        list.by_position(&lines.map(class).collect::<Result<Vec<_>, _>>()?, files)
    }
}

/// What the messages about a list have in common.
#[derive(Debug, Clone, Copy)]
struct List<'a> {
    path: &'a Path,
    lines: usize,
}

impl List<'_> {
    /// The class that `word` stands for: a wnid, or a number of which `of_number` knows the label.
    fn class(
        &self,
        line: usize,
        word: &str,
        allowed: &'static str,
        of_number: impl Fn(u64) -> Option<i32>,
    ) -> Result<i32, GroundTruthError> {
        if let Some(label) = class_of(word) {
            return Ok(label);
        }
        let got = word.parse().map_err(|_| self.unknown(line, word))?;
        of_number(got).ok_or_else(|| GroundTruthError::Range { path: self.path.to_owned(), line, got, allowed })
    }

    fn by_name(
        &self,
        entries: impl Iterator<Item = Result<(usize, (String, i32)), GroundTruthError>>,
        files: &[String],
    ) -> Result<Vec<i32>, GroundTruthError> {
        let mut labels = HashMap::new();
        for entry in entries {
            let (line, (name, label)) = entry?;
            if let Some((_, first)) = labels.insert(name.clone(), (label, line)) {
                return Err(GroundTruthError::Twice { path: self.path.to_owned(), line, first, name });
            }
        }
        let label = |file: &String| labels.get(stem(file)).map(|(label, _)| *label).ok_or_else(|| self.no_label(file));
        files.iter().map(label).collect()
    }

    fn by_position(&self, labels: &[i32], files: &[String]) -> Result<Vec<i32>, GroundTruthError> {
        if labels.len() != files.len() {
            return Err(GroundTruthError::Lines {
                path: self.path.to_owned(),
                lines: labels.len(),
                files: files.len(),
            });
        }
        let label = |file: &String| {
            let index = number(stem(file)).and_then(|number| number.checked_sub(1));
            index.and_then(|index| labels.get(index)).copied().ok_or_else(|| self.no_label(file))
        };
        files.iter().map(label).collect()
    }

    fn malformed(&self, line: usize, expected: &'static str, got: &str) -> GroundTruthError {
        GroundTruthError::Malformed { path: self.path.to_owned(), line, expected, got: beginning(got) }
    }

    fn unknown(&self, line: usize, got: &str) -> GroundTruthError {
        GroundTruthError::UnknownWnid { path: self.path.to_owned(), line, got: beginning(got) }
    }

    fn no_label(&self, file: &str) -> GroundTruthError {
        GroundTruthError::NoLabel { path: self.path.to_owned(), lines: self.lines, file: file.to_owned() }
    }
}

/// As much of a text as a message should quote.
fn beginning(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A name without its folder and without the extension of an image.
fn stem(name: &str) -> &str {
    let base = name.rsplit('/').next().unwrap_or(name);
    match base.rsplit_once('.') {
        Some((stem, extension)) if ["jpg", "jpeg", "png"].iter().any(|e| extension.eq_ignore_ascii_case(e)) => stem,
        _ => base,
    }
}

/// The number in which a stem ends.
fn number(stem: &str) -> Option<usize> {
    let before = stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    stem[before..].parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The files of images 1 to 3, not in order.
    fn files() -> Vec<String> {
        [2, 1, 3].map(|number| format!("val/ILSVRC2012_val_{number:08}.JPEG")).into()
    }

    fn of(text: &str) -> Result<Vec<i32>, GroundTruthError> {
        labels_of(text, Path::new("list.txt"), &files())
    }

    #[test]
    fn all_kinds_of_list_give_the_same_labels() {
        // The first three validation images are a sea snake (65), an alp (970) and a Shetland sheepdog (230).
        let lists = [
            "n01751748\nn09193705\nn02105855\n",
            "490\n361\n171",
            "\u{feff}490\r\n361\r\n171\r\n\r\n",
            "ImageId,PredictionString\n\
             ILSVRC2012_val_00000003,n02105855 1 2 3 4 n02105855 5 6 7 8 \n\
             ILSVRC2012_val_00000001,n01751748 9 9 9 9 \nILSVRC2012_val_00000002,n09193705 0 0 0 0 \n",
            "ILSVRC2012_val_00000001,n01751748\nILSVRC2012_val_00000002,n09193705\nILSVRC2012_val_00000003,n02105855",
            "ILSVRC2012_val_00000001.JPEG 65\nILSVRC2012_val_00000002.JPEG 970\nILSVRC2012_val_00000003.JPEG 230\n",
            "x/ILSVRC2012_val_00000003.jpeg\tn02105855\nILSVRC2012_val_00000002 970\n\
             ILSVRC2012_val_00000001.JPEG n01751748\nILSVRC2012_val_00000004.JPEG 0",
        ];
        for list in lists {
            assert_eq!(of(list).unwrap(), [970, 65, 230], "{list:?}");
        }
    }

    #[test]
    fn every_way_of_being_wrong_has_its_error_with_the_line_and_a_remedy() {
        let a = "ILSVRC2012_val_00000001";
        let cases = [
            ("490\n361", "Lines", "line 2 "),
            ("490\n361\n171\n13", "Lines", "line 4 "),
            ("", "Lines", "line 0 "),
            ("490\n0\n171", "Range", "line 2 "),
            ("490\n361\n1001", "Range", "line 3 "),
            ("490\n65537\n171", "Range", "line 2 "),
            ("490\n\n171", "Malformed", "line 2 "),
            ("490\n361\n17 1", "Malformed", "line 3 "),
            ("490\n-1\n171", "UnknownWnid", "line 2 "),
            ("n00000001\n361\n171", "UnknownWnid", "line 1 "),
            (&format!("{a}.JPEG 1000"), "Range", "line 1 "),
            (&format!("{a}.JPEG 1\nx"), "Malformed", "line 2 "),
            (&format!("{a}.JPEG dog"), "UnknownWnid", "line 1 "),
            (&format!("{a}.JPEG 1\nval/{a} 1"), "Twice", "line 2 "),
            (&format!("{a}.JPEG 1"), "NoLabel", "lines 1 to 1 "),
            (&format!("ImageId,PredictionString\n{a},65"), "UnknownWnid", "line 2 "),
            (&format!("ImageId,PredictionString\n{a} n01751748"), "Malformed", "line 2 "),
            (&format!("ImageId,PredictionString\n{a}, "), "Malformed", "line 2 "),
            (&format!("{a},n01751748\n{a},n01751748"), "Twice", "line 2 "),
            (&format!("ImageId,PredictionString\n{a},n01751748"), "NoLabel", "lines 1 to 2 "),
        ];
        for (list, name, line) in cases {
            let error = of(list).expect_err(list);
            let text = error.to_string();
            assert!(format!("{error:?}").starts_with(name), "{list:?}: {error:?}");
            assert!(text.starts_with("list.txt: ") && text.contains(line) && text.contains("; "), "{text}");
        }
    }

    #[test]
    fn files_of_a_list_without_names_are_numbered_by_their_names() {
        let labels = |files: &[&str]| {
            labels_of("490\n361", Path::new("list.txt"), &files.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(labels(&["b2.png", "val_0001"]).unwrap(), [970, 65]);
        for other in ["val_3.png", "val_0.png", "val.png", "99999999999999999999.png"] {
            assert!(matches!(labels(&["1.png", other]), Err(GroundTruthError::NoLabel { file, .. }) if file == other));
        }
    }

    #[test]
    fn a_list_is_read_from_disk_and_one_that_is_no_text_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("val.txt");
        fs::write(&path, "490\n361\n171\n").unwrap();
        assert_eq!(labels(&path, &files()).unwrap(), [970, 65, 230]);
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(labels(&path, &files()), Err(GroundTruthError::Read { .. })));
        File::create(&path).unwrap().set_len(MAX_LIST_LEN + 1).unwrap();
        assert!(matches!(labels(&path, &files()), Err(GroundTruthError::TooLong { .. })));
    }
}
