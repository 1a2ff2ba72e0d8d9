//! Every way in which a shard, a manifest or a call can be wrong: one variant each, with the file, the place in it,
//! what was expected and what was found.
//!
//! A message is one sentence that ends in what to do. There is no catch-all variant.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A part of a shard file, as error messages name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Bytes 0..32.
    Prefix,
    /// The JSON header.
    Header,
    /// The frame of one column of one block.
    Frame {
        /// Block number, from 0.
        block: usize,
        /// Column number, from 0, in the order of the schema.
        column: usize,
    },
    /// The footer.
    Footer,
    /// The zstd frame in the footer that holds the keys.
    Keys,
    /// Everything between the prefix and the tail.
    Body,
    /// The last 64 bytes.
    Tail,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix => f.write_str("the first 32 bytes"),
            Self::Header => f.write_str("the JSON header"),
            Self::Frame { block, column } => write!(f, "block {block}, column {column}"),
            Self::Footer => f.write_str("the footer"),
            Self::Keys => f.write_str("the key table"),
            Self::Body => f.write_str("the body"),
            Self::Tail => f.write_str("the last 64 bytes"),
        }
    }
}

/// What can go wrong. [`ShardError::is_corrupt`] tells damaged data from a mistake that the caller can repair.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}; check that the path exists, its permissions and the free space", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The path is a folder, a pipe or a device.
    #[error("{path}: is not a regular file; give the path of a dataset's folder or of a .lat shard", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file cannot hold even its fixed parts.
    #[error("{path}: has {got} bytes where a shard needs at least {expected}; the file is cut short: copy or encode it again", path = path.display())]
    TooShort {
        /// The shard.
        path: PathBuf,
        /// Smallest possible length in bytes.
        expected: u64,
        /// Length in bytes.
        got: u64,
    },
    /// The file does not begin or end as a shard does.
    #[error("{path}: {place} hold {got:02x?} where the magic \"LATSHRD\" is expected; the file is not a shard, or it is cut short: copy or encode it again", path = path.display())]
    Magic {
        /// The shard.
        path: PathBuf,
        /// Prefix or tail.
        place: Place,
        /// The eight bytes found.
        got: [u8; 8],
    },
    /// A later or unknown format version.
    #[error("{path}: has format version {got} and this program reads version {expected}; update the program", path = path.display())]
    Version {
        /// The shard or manifest.
        path: PathBuf,
        /// [`crate::VERSION`].
        expected: u32,
        /// The version found.
        got: u32,
    },
    /// The writer never came to the end.
    #[error("{path}: was never finished (its footer offset is 0); delete it and run `pipeline encode` again", path = path.display())]
    Unfinished {
        /// The shard.
        path: PathBuf,
    },
    /// A field that must be 0 in this version is not.
    #[error("{path}: a reserved field in {place} is {got:#x} where 0 is expected; the shard is damaged or from a newer program: update the program or encode it again", path = path.display())]
    Reserved {
        /// The shard.
        path: PathBuf,
        /// Where the field is.
        place: Place,
        /// Its value.
        got: u64,
    },
    /// The header length is over the limit or not aligned.
    #[error("{path}: the header length is {got} where a multiple of 4096 less 32, up to {max}, is expected; the shard is damaged: copy or encode it again", path = path.display())]
    HeaderLength {
        /// The shard.
        path: PathBuf,
        /// Largest length in bytes.
        max: u64,
        /// Length found.
        got: u64,
    },
    /// A checksum does not match the bytes.
    #[error("{path}: the checksum of {place} is {got:016x} where {expected:016x} is expected; the shard is damaged: copy or encode it again", path = path.display())]
    Checksum {
        /// The shard.
        path: PathBuf,
        /// What the checksum covers.
        place: Place,
        /// The checksum that is stored.
        expected: u64,
        /// The checksum of the bytes.
        got: u64,
    },
    /// The header or the manifest is not the JSON it should be.
    #[error("{path}: the JSON is not valid: {reason}; copy the file or encode the dataset again", path = path.display())]
    Json {
        /// The shard or manifest.
        path: PathBuf,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A field of the schema, the header or the manifest has a value that is not allowed.
    #[error("{path}: `{field}` is {got} where {expected} is expected; correct it, or encode the dataset again", path = path.display())]
    Field {
        /// The shard or manifest.
        path: PathBuf,
        /// Path of the field, such as `schema.columns[0].name`.
        field: String,
        /// What is allowed.
        expected: String,
        /// What was found.
        got: String,
    },
    /// The footer's offset and length do not fit the file.
    #[error("{path}: the footer is said to begin at byte {got} where {expected} is expected; the shard is cut short or damaged: copy or encode it again", path = path.display())]
    FooterPosition {
        /// The shard.
        path: PathBuf,
        /// The allowed offset.
        expected: String,
        /// The offset found.
        got: u64,
    },
    /// The footer's length does not follow from its counts.
    #[error("{path}: the footer has {got} bytes where its counts need {expected}; the shard is damaged: copy or encode it again", path = path.display())]
    FooterLength {
        /// The shard.
        path: PathBuf,
        /// Length in bytes that the counts give.
        expected: u64,
        /// Length in bytes.
        got: u64,
    },
    /// A count disagrees with another part of the file.
    #[error("{path}: {what} is {got} where {expected} is expected; the shard is damaged: copy or encode it again", path = path.display())]
    Count {
        /// The shard.
        path: PathBuf,
        /// What is counted.
        what: String,
        /// The count that the rest of the file gives.
        expected: u64,
        /// The count found.
        got: u64,
    },
    /// Something is over a limit of the format.
    #[error("{path}: {what} is {got} where at most {max} is expected; use smaller or more shards, or encode the dataset again if it is damaged", path = path.display())]
    TooLarge {
        /// The shard or manifest.
        path: PathBuf,
        /// What is over the limit.
        what: String,
        /// The limit.
        max: u64,
        /// The value found.
        got: u64,
    },
    /// A frame does not begin where the one before it ends.
    #[error("{path}: the frame of block {block}, column {column} is said to begin at byte {got} where {expected} is expected; the shard is damaged: copy or encode it again", path = path.display())]
    FrameOffset {
        /// The shard.
        path: PathBuf,
        /// Block number.
        block: usize,
        /// Column number.
        column: usize,
        /// Where the frame before it ends.
        expected: u64,
        /// The offset found.
        got: u64,
    },
    /// A frame has a length that its contents cannot have.
    #[error("{path}: the frame of block {block}, column {column} has {got} bytes where {expected} are expected; the shard is damaged: copy or encode it again", path = path.display())]
    FrameLength {
        /// The shard.
        path: PathBuf,
        /// Block number.
        block: usize,
        /// Column number.
        column: usize,
        /// The lengths that are possible.
        expected: String,
        /// The length found.
        got: u64,
    },
    /// The frames do not fill the space up to the footer.
    #[error("{path}: the last frame ends at byte {got} where the footer begins at {expected}; the shard is damaged: copy or encode it again", path = path.display())]
    PayloadEnd {
        /// The shard.
        path: PathBuf,
        /// Where the footer begins.
        expected: u64,
        /// Where the last frame ends.
        got: u64,
    },
    /// The bytes are not one zstd frame of the right content.
    #[error("{path}: {place} cannot be decompressed: {reason}; the shard is damaged: copy or encode it again", path = path.display())]
    Inflate {
        /// The shard.
        path: PathBuf,
        /// A frame or the key table.
        place: Place,
        /// What is wrong with the frame.
        reason: String,
    },
    /// The key table does not give one UTF-8 key per sample.
    #[error("{path}: the key of sample {sample} is not valid: {reason}; the shard is damaged: copy or encode it again", path = path.display())]
    Key {
        /// The shard.
        path: PathBuf,
        /// Sample number in the shard.
        sample: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file lost bytes after it was opened, or the disk failed under it.
    #[error("{path}: {place} can no longer be read in full: the file was cut short while it was open, or the disk failed; copy it again and restart", path = path.display())]
    Shrank {
        /// The shard.
        path: PathBuf,
        /// What was being read.
        place: Place,
    },
    /// The caller asked for a block that is not there.
    #[error("{path}: block {block} was asked for where {blocks} are there; pass a smaller block number", path = path.display())]
    NoSuchBlock {
        /// The shard.
        path: PathBuf,
        /// Block asked for.
        block: usize,
        /// Number of blocks.
        blocks: usize,
    },
    /// The caller asked for a column that is not there.
    #[error("{path}: column {column} was asked for where {columns} are there; pass a smaller column number", path = path.display())]
    NoSuchColumn {
        /// The shard.
        path: PathBuf,
        /// Column asked for.
        column: usize,
        /// Number of columns.
        columns: usize,
    },
    /// The caller's buffer has the wrong length.
    #[error("{path}: the buffer for block {block}, column {column} has {got} bytes where {expected} are expected; size it as samples times bytes per sample", path = path.display())]
    BufferLength {
        /// The shard.
        path: PathBuf,
        /// Block number.
        block: usize,
        /// Column number.
        column: usize,
        /// Length in bytes that is needed.
        expected: usize,
        /// Length in bytes.
        got: usize,
    },
    /// A block was written with the wrong number of columns.
    #[error("{path}: block {block} was given with {got} columns where {expected} are expected; pass one buffer per column of the schema", path = path.display())]
    BlockColumns {
        /// The shard.
        path: PathBuf,
        /// Block number.
        block: usize,
        /// Columns of the schema.
        expected: usize,
        /// Columns given.
        got: usize,
    },
    /// A block was written with the wrong number of samples.
    #[error("{path}: block {block} was given with {got} samples where {expected} are expected; only the last block of a shard may be short", path = path.display())]
    BlockSamples {
        /// The shard.
        path: PathBuf,
        /// Block number.
        block: usize,
        /// The numbers that are allowed.
        expected: String,
        /// Samples given.
        got: usize,
    },
    /// The shard to be written is already there.
    #[error("{path}: already exists and is not overwritten; delete it first, or write elsewhere", path = path.display())]
    Exists {
        /// The shard.
        path: PathBuf,
    },
    /// Another process is writing the same file.
    #[error("{path}: is being written by another process; wait for it or stop it", path = path.display())]
    Busy {
        /// The file to be written.
        path: PathBuf,
    },
    /// The writer was used again after an error.
    #[error("{path}: the writer failed before and accepts nothing more; begin the shard again", path = path.display())]
    WriterFailed {
        /// The shard.
        path: PathBuf,
    },
    /// The folder has no manifest.
    #[error("{path}: has no dataset.json, so it is not a dataset or was never finished; run `pipeline encode` (again) to complete it", path = path.display())]
    NoManifest {
        /// The folder.
        path: PathBuf,
    },
    /// The manifest lists a shard under a name that cannot be used.
    #[error("{path}: lists a shard named {name:?} where {expected} is expected; encode the dataset again", path = path.display())]
    ShardName {
        /// The manifest.
        path: PathBuf,
        /// The name.
        name: String,
        /// What is wrong with it, as what is expected.
        expected: &'static str,
    },
    /// The manifest's total is not the sum of its shards.
    #[error("{path}: `samples` is {got} where the shards sum up to {expected}; encode the dataset again", path = path.display())]
    ManifestSum {
        /// The manifest.
        path: PathBuf,
        /// Sum over the shards.
        expected: u64,
        /// The total found.
        got: u64,
    },
    /// A shard that the manifest lists is not there.
    #[error("{path}: is listed in dataset.json and missing; copy it again, or delete dataset.json and run `pipeline encode` again", path = path.display())]
    ShardMissing {
        /// The shard.
        path: PathBuf,
    },
    /// A shard is not the one that the manifest lists.
    #[error("{path}: its {field} is {got} where dataset.json says {expected}; copy the shard again, or delete it and dataset.json and run `pipeline encode` again", path = path.display())]
    ShardMismatch {
        /// The shard.
        path: PathBuf,
        /// What differs.
        field: &'static str,
        /// What the manifest says.
        expected: String,
        /// What the shard says.
        got: String,
    },
    /// A label is outside of the manifest's classes.
    #[error("{path}: the label of sample {sample} is {got} where 0..{classes} is expected; encode the dataset again", path = path.display())]
    Label {
        /// The shard.
        path: PathBuf,
        /// Sample number in the shard.
        sample: usize,
        /// Number of classes in the manifest.
        classes: usize,
        /// The label.
        got: i32,
    },
}

impl ShardError {
    /// True where stored data are damaged (a program exits with "data corrupt"), false where the user or the caller can
    /// repair the cause: a wrong path, no space, a wrong buffer, an unfinished dataset, a newer format.
    pub fn is_corrupt(&self) -> bool {
        match self {
            Self::TooShort { .. }
            | Self::Magic { .. }
            | Self::Reserved { .. }
            | Self::HeaderLength { .. }
            | Self::Checksum { .. }
            | Self::Json { .. }
            | Self::FooterPosition { .. }
            | Self::FooterLength { .. }
            | Self::Count { .. }
            | Self::FrameOffset { .. }
            | Self::FrameLength { .. }
            | Self::PayloadEnd { .. }
            | Self::Inflate { .. }
            | Self::Key { .. }
            | Self::Shrank { .. }
            | Self::ShardName { .. }
            | Self::ManifestSum { .. }
            | Self::ShardMissing { .. }
            | Self::ShardMismatch { .. }
            | Self::Label { .. } => true,
            Self::Io { .. }
            | Self::NotAFile { .. }
            | Self::Version { .. }
            | Self::Unfinished { .. }
            | Self::Field { .. }
            | Self::TooLarge { .. }
            | Self::NoSuchBlock { .. }
            | Self::NoSuchColumn { .. }
            | Self::BufferLength { .. }
            | Self::BlockColumns { .. }
            | Self::BlockSamples { .. }
            | Self::Exists { .. }
            | Self::Busy { .. }
            | Self::WriterFailed { .. }
            | Self::NoManifest { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_file_the_place_and_both_values() {
        let error = ShardError::Checksum {
            path: "data/shard-00003.lat".into(),
            place: Place::Frame { block: 7, column: 1 },
            expected: 0xab,
            got: 0xcd,
        };
        let text = error.to_string();
        for part in ["data/shard-00003.lat", "block 7, column 1", "00000000000000ab", "00000000000000cd", "encode"] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        assert!(error.is_corrupt());
        assert!(!ShardError::NoManifest { path: "data".into() }.is_corrupt());
    }
}
