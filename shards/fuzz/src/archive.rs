//! Tars: small valid ones to begin with, and changes under header checksums that fit.

use std::error::Error;
use std::fs;
use std::path::Path;

const BLOCK: usize = 512;
/// Where the checksum is in a header, counted as spaces.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// One change of the tar in `data[..size]`, in place; returns the new length. Checksums of what looks like a header are
/// made to fit, but for one change in eight.
pub fn change(
    data: &mut [u8],
    size: usize,
    max: usize,
    seed: u32,
    mutate: fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let size = mutate(data, size, max);
    if !seed.is_multiple_of(8) {
        let (blocks, _) = data.get_mut(..size).unwrap_or_default().as_chunks_mut::<BLOCK>();
        blocks.iter_mut().for_each(seal);
    }
    size
}

/// Writes the checksum of a header where there was one: octal digits.
fn seal(block: &mut [u8; BLOCK]) {
    if block[CHECKSUM.start..CHECKSUM.start + 6].iter().all(|byte| matches!(byte, b'0'..=b'7' | b' ')) {
        block[CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// A header and its padded data; `magic` is `ustar\000`, GNU's `ustar  \0`, or nothing for v7.
fn member(name: &[u8], kind: u8, magic: &[u8], prefix: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name);
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[CHECKSUM].fill(b' ');
    header[156] = kind;
    header[257..257 + magic.len()].copy_from_slice(magic);
    header[345..345 + prefix.len()].copy_from_slice(prefix);
    seal(&mut header);
    let mut bytes = [&header[..], data].concat();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A sample in each style of names, one with members before and behind that are passed over, and one with a size in
/// base 256.
///
/// # Errors
/// What writing them gives, and what indexing them gives.
pub fn tars(dir: &Path) -> Result<(), Box<dyn Error>> {
    let (ustar, gnu) = (&b"ustar\x0000"[..], &b"ustar  \0"[..]);
    let end = vec![0; 2 * BLOCK];
    let long = [b"d/".repeat(80), b"a.jpg".to_vec()].concat();
    let image = b"\xff\xd8\xff\xd9";
    let v7 = [member(b"a.cls", 0, b"", b"", b"7"), member(b"a.jpg", b'0', b"", b"", image)].concat();
    let posix = [
        member(b"0001.jpeg", b'0', ustar, b"n01440764", image),
        member(b"0001.cls", b'0', ustar, b"n01440764", b"12\n"),
        member(b"0001.json", b'0', ustar, b"n01440764", b"{}"),
    ];
    let gnu = [
        member(b"././@LongLink", b'L', gnu, b"", &[&long[..], b"\0"].concat()),
        member(&long[..100], b'0', gnu, b"", image),
        member(b"././@LongLink", b'L', gnu, b"", &[&long[..long.len() - 3], b"cls\0"].concat()),
        member(&long[..100], b'0', gnu, b"", b"3"),
    ];
    let pax = [
        member(b"pax_global_header", b'g', ustar, b"", b"19 comment=0123456\n"),
        member(b"dir/", b'5', ustar, b"", b""),
        member(b"x", b'x', ustar, b"", b"19 path=dir/\xc3\xa9.png\n9 size=4\n"),
        member(b"e.png", b'0', ustar, b"", image),
        member(b"x", b'x', ustar, b"", b"19 path=dir/\xc3\xa9.cls\n"),
        member(b"e.cls", b'0', ustar, b"", b"999"),
        member(b"link", b'2', ustar, b"", b""),
    ];
    let mut base256 = member(b"b.PNG", b'0', ustar, b"", image);
    base256[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\0\0\0\0\x04");
    base256.as_chunks_mut::<BLOCK>().0.iter_mut().take(1).for_each(seal);
    base256.extend(member(b"b.cls", b'0', ustar, b"", b"0"));
    let tars =
        [("v7", v7), ("ustar", posix.concat()), ("gnu", gnu.concat()), ("pax", pax.concat()), ("base256", base256)];
    for (name, members) in tars {
        let path = dir.join(name);
        fs::write(&path, [&members[..], &end].concat())?;
        shards::tar::index(&path)?;
    }
    Ok(())
}
