//! Every way in which a tar can be wrong: one variant each, with the file, the byte, and what to do.

use std::io;
use std::path::PathBuf;

use super::{MAX_LABEL_LEN, MAX_RECORD_LEN};
use crate::layout::MAX_KEY_LEN;

/// Why a tar could not be indexed: which file, where in it, and what is wrong there.
#[derive(Debug, thiserror::Error)]
#[error("{path}: at byte {offset}: {fault}", path = path.display())]
pub struct TarError {
    /// The tar.
    pub path: PathBuf,
    /// The header that is at fault, or the first header of the member or sample that is; 0 if the file itself is.
    pub offset: u64,
    /// What is wrong.
    pub fault: TarFault,
}

/// What is wrong with a tar.
#[derive(Debug, thiserror::Error)]
pub enum TarFault {
    /// The operating system refused.
    #[error("cannot be read: {source}; check that the path exists and its permissions")]
    Io {
        /// The operating system's reason.
        source: io::Error,
    },
    /// The path is a folder, a pipe or a device.
    #[error("is not a regular file; give the path of a .tar")]
    NotAFile,
    /// The file begins as a compressed file does.
    #[error("this file is compressed with {0}, and so no sample in it can be found by position; decompress it first")]
    Compressed(&'static str),
    /// The file does not begin with a tar header.
    #[error("no tar header is here; the file is not a tar: give another one")]
    NotATar,
    /// A header's checksum does not match.
    #[error("the checksum of the header is {got} where {stored} is stored; the tar is damaged: copy it again")]
    Checksum {
        /// Sum of the header's bytes, unsigned, with the field itself as spaces.
        got: u64,
        /// The number in the field.
        stored: u64,
    },
    /// A number of a header is neither octal nor a base-256 number that fits.
    #[error("the field `{field}` of the header is not a number; the tar is damaged: copy or write it again")]
    Number {
        /// Name of the field.
        field: &'static str,
    },
    /// The file ends inside a header, a member, its padding, or between a long name and the member that it names.
    #[error("the member that begins here is cut off by the end of the file at byte {len}; copy the tar again")]
    Truncated {
        /// Length of the file in bytes.
        len: u64,
    },
    /// There are bytes behind the end of the archive.
    #[error(
        "data follow the end-of-archive mark, as when tars were joined with cat; index the parts, or join them with tar --concatenate"
    )]
    AfterEnd,
    /// A long name or an extended header is too long.
    #[error(
        "a name or extended header has {got} bytes and at most {MAX_RECORD_LEN} are read; write the tar again with shorter names"
    )]
    RecordTooLong {
        /// Its length in bytes.
        got: u64,
    },
    /// An extended header does not consist of `length key=value` lines.
    #[error("the PAX extended header is malformed; the tar is damaged: copy or write it again")]
    Pax,
    /// A sparse file: its bytes in the tar are not its content.
    #[error("sparse files are not read; write the tar again without --sparse")]
    Sparse,
    /// A name is not UTF-8, and so cannot be a key.
    #[error("the name of the member is not UTF-8; rename it and write the tar again")]
    NotUtf8,
    /// A key is longer than a shard can store.
    #[error(
        "the key of the member has {got} bytes and at most {MAX_KEY_LEN} can be stored; rename it and write the tar again"
    )]
    KeyTooLong {
        /// Its length in bytes.
        got: usize,
    },
    /// A sample without an image.
    #[error(
        "sample {key:?} has no jpg, jpeg or png member; add it next to the others, or take the sample out of the tar"
    )]
    NoImage {
        /// The sample's key.
        key: String,
    },
    /// A sample with more than one image.
    #[error("sample {key:?} has the images {first:?} and {second:?}; keep one of them")]
    TwoImages {
        /// The sample's key.
        key: String,
        /// Name of the first member.
        first: String,
        /// Name of the other.
        second: String,
    },
    /// A sample without a label.
    #[error("sample {key:?} has no cls member; add it next to the image, as one decimal number")]
    NoLabel {
        /// The sample's key.
        key: String,
    },
    /// A sample with more than one label.
    #[error("sample {key:?} has two cls members; keep one of them")]
    TwoLabels {
        /// The sample's key.
        key: String,
    },
    /// A `cls` member that holds something else.
    #[error(
        "the cls member of sample {key:?} holds {got:?} (first {MAX_LABEL_LEN} bytes) where a decimal number is expected; correct it"
    )]
    NotANumber {
        /// The sample's key.
        key: String,
        /// What it holds.
        got: String,
    },
    /// A label that is negative or above 2147483647.
    #[error("the label of sample {key:?} is {got} and must be 0 to 2147483647; correct it")]
    LabelRange {
        /// The sample's key.
        key: String,
        /// The number as it stands.
        got: String,
    },
    /// A key that an earlier sample has. This is also how members of one sample show that are not next to each other.
    #[error(
        "sample {key:?} is already at byte {first}; rename one, or put the members of a sample next to each other (tar --sort=name)"
    )]
    DuplicateKey {
        /// The key of both.
        key: String,
        /// Where the first of them begins.
        first: u64,
    },
    /// A tar without any sample.
    #[error(
        "there is no sample in this tar ({ignored} members were passed over); it must hold members such as 000.jpg and 000.cls"
    )]
    NoSamples {
        /// Members that belong to no sample.
        ignored: usize,
    },
}
