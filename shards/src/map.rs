//! A read-only mapping of a file that survives the file being cut short under it.
//!
//! Reading a mapped page that the file no longer has raises SIGBUS, which ends the process. Here a handler puts a page
//! of zeros in its place, marks the mapping, and lets the read go on; the reader then finds the mark ([`Map::faulted`])
//! and reports an error. A fault outside of these mappings goes to whatever handler was there before.
//!
//! Not covered: a program that installs another SIGBUS handler later, or whose earlier one survives a fault elsewhere
//! (the guard ends with the first fault that is not its own); more mappings at a time than [`SLOTS`] (one more is an
//! error); a file that is overwritten in place, which the checksums find only if it happens before they are compared.
//! Linux only.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use memmap2::{Advice, Mmap, MmapOptions};

/// Most mappings at a time. A fixed table, since a signal handler can neither lock nor follow memory that may be freed.
const SLOTS: usize = 4096;
static TABLE: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];
/// Page size in bytes, for the handler.
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// What handled SIGBUS before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Whether the handler could be installed: 0, or the operating system's error number.
static INSTALLED: OnceLock<i32> = OnceLock::new();

/// Address range of one mapping.
#[derive(Debug)]
struct Slot {
    /// First address; [`FREE`] or [`CLAIMED`] while there is no mapping.
    start: AtomicUsize,
    /// Past the last address, at a page boundary.
    end: AtomicUsize,
    faulted: AtomicBool,
}

const FREE: usize = 0;
/// No mapping begins at address 1: mappings begin at pages.
const CLAIMED: usize = 1;

impl Slot {
    const fn new() -> Self {
        Self { start: AtomicUsize::new(FREE), end: AtomicUsize::new(0), faulted: AtomicBool::new(false) }
    }

    /// Takes a free slot for `start..end`.
    fn claim(start: usize, end: usize) -> Option<&'static Self> {
        let claim =
            |slot: &&Self| slot.start.compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let slot = TABLE.iter().find(claim)?;
        slot.faulted.store(false, Ordering::Relaxed);
        slot.end.store(end, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Some(slot)
    }

    /// Whether `address` is in it. Between the two loads the slot can only have been given up, never been taken for a
    /// range around `address`: that range is mapped by whoever faults there.
    fn contains(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::Acquire);
        start > CLAIMED && (start..self.end.load(Ordering::Acquire)).contains(&address)
    }

    fn release(&self) {
        self.end.store(0, Ordering::Release);
        self.start.store(FREE, Ordering::Release);
    }
}

/// A guarded mapping of the first `len` bytes of a file.
#[derive(Debug)]
pub(crate) struct Map {
    map: Mmap,
    file: File,
    slot: &'static Slot,
}

impl Map {
    /// Maps `len` bytes, at least 1.
    pub(crate) fn open(file: &File, len: usize) -> io::Result<Self> {
        match *INSTALLED.get_or_init(install) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        // SAFETY: the mapping is private and read-only. That its bytes stay as they are is a convention, as for every
        // mapped file: a finished shard is never written to (it is replaced by rename). If somebody breaks it, the
        // bytes read are wrong but initialised, and only hashing, copying and zstd, which take any bytes, look at them.
        // If the file is cut short, the handler below keeps every page readable.
        let map = unsafe { MmapOptions::new().len(len).map(file)? };
        let start = map.as_ptr() as usize;
        let end = start + len.next_multiple_of(PAGE.load(Ordering::Relaxed));
        let slot = Slot::claim(start, end).ok_or_else(|| io::Error::other("too many shards are mapped"))?;
        Ok(Self { map, file: file.try_clone()?, slot })
    }

    /// `len` bytes from `off`; `None` outside of the mapping.
    pub(crate) fn bytes(&self, off: usize, len: usize) -> Option<&[u8]> {
        self.map.get(off..off.checked_add(len)?)
    }

    /// Starts reading `len` bytes from `off` as one request. Advice only: where it is refused, pages are read as they are
    /// touched.
    pub(crate) fn read_ahead(&self, off: usize, len: usize) {
        // Frames share their first and last pages with their neighbours.
        if len > 0 && !self.is_cached(off + len / 2) {
            let _ = self.map.advise_range(Advice::WillNeed, off, len);
        }
    }

    /// Whether byte `off` is in the system's cache: a small part of what the advice costs for a frame that is. (mincore would
    /// not tell: for files of others it says yes.) No where the file system cannot say.
    fn is_cached(&self, off: usize) -> bool {
        let mut byte = 0_u8;
        let into = libc::iovec { iov_base: std::ptr::from_mut(&mut byte).cast(), iov_len: 1 };
        let Ok(off) = libc::off_t::try_from(off) else { return false };
        // SAFETY: the descriptor is open, and the one range is valid for the write of one byte. The call does not wait.
        let read = unsafe { libc::preadv2(self.file.as_raw_fd(), &raw const into, 1, off, libc::RWF_NOWAIT) };
        read == 1
    }

    /// True once any page could not be read: bytes that were taken from the mapping before this call may then be zeros.
    pub(crate) fn faulted(&self) -> bool {
        // The reads before must not be moved behind the load.
        fence(Ordering::SeqCst);
        self.slot.faulted.load(Ordering::SeqCst)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // Before the addresses are unmapped, and can be somebody else's.
        self.slot.release();
    }
}

/// Installs the handler, once in a process. Returns 0 or the error number.
fn install() -> i32 {
    let failed = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    // SAFETY: sysconf takes any name.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    match usize::try_from(page) {
        Ok(page) if page.is_power_of_two() => PAGE.store(page, Ordering::Relaxed),
        _ => return libc::EINVAL,
    }
    // SAFETY: sigaction is a plain C structure for which all zeros (default action, empty mask) is valid.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null action only queries; `previous` is valid for writes.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) } != 0 {
        return failed();
    }
    // Known to the handler before the handler can run.
    PREVIOUS.get_or_init(|| previous);
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as usize;
    // On the thread's signal stack where it has one, as Rust's own handler for stack overflow needs it.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised, and the handler does only what a signal handler may: atomic loads and stores, and
    // the system calls mmap and sigaction; errno is put back.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => 0,
        _ => failed(),
    }
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid structure, and for SIGBUS it carries an address. errno is this
    // thread's.
    let (address, errno) = unsafe { ((*info).si_addr() as usize, *libc::__errno_location()) };
    let page = PAGE.load(Ordering::Relaxed);
    if !TABLE.iter().any(|slot| slot.contains(address) && cover(slot, address, page)) {
        let previous = PREVIOUS.get().map_or(std::ptr::null(), std::ptr::from_ref);
        // Not ours: the read is repeated on return, and faults under the handler that was there before.
        // SAFETY: `previous` is null, which changes nothing, or what the kernel returned for this signal.
        unsafe { libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut()) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts a page of zeros at `address`, which is in the mapping of `slot`.
fn cover(slot: &Slot, address: usize, page: usize) -> bool {
    // The mark comes first: who reads zeros finds it.
    slot.faulted.store(true, Ordering::SeqCst);
    let start = std::ptr::without_provenance_mut(address & !(page - 1));
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the page lies in a mapping of ours that is in use (somebody is reading it), so nothing else is replaced;
    // it stays readable, and is unmapped with the rest of the mapping.
    let mapped = unsafe { libc::mmap(start, page, libc::PROT_READ, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Whether the file is on a file system of this machine, where a page fault costs little. Unknown kinds count as remote.
pub(crate) fn is_local(file: &File) -> bool {
    // From statfs(2).
    const LOCAL: [u32; 8] = [
        0xef53,      // ext2, ext3, ext4
        0x5846_5342, // XFS
        0x9123_683e, // Btrfs
        0xf2f5_2010, // F2FS
        0x2fc1_2fc1, // ZFS
        0x0102_1994, // tmpfs
        0x8584_58f6, // ramfs
        0x794c_7630, // overlayfs
    ];
    // SAFETY: statfs is a plain C structure for which all zeros is valid.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `stat` is valid for writes.
    let done = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } == 0;
    // The field's type differs between architectures; the numbers have 32 bits.
    done && LOCAL.contains(&(stat.f_type as u32))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Command, Output};
    use std::thread;

    use super::*;
    use crate::{Io, Place, Scratch, ShardError, ShardReader, fixture};

    /// Set in the child process: the folder that it may use.
    const CHILD: &str = "SHARDS_SIGBUS_CHILD";

    /// Runs one test of this binary again, in a process that may die.
    fn rerun(test: &str) -> Output {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("map::tests::{test}"), "--nocapture"]);
        command.env(CHILD, dir.path()).output().unwrap()
    }

    fn cut(path: &Path, len: u64) {
        OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
    }

    fn read(reader: &ShardReader, block: usize, scratch: &mut Scratch) -> Result<Vec<u8>, ShardError> {
        let mut out = vec![0; reader.block_len(block) * reader.columns()[0].sample_bytes()];
        reader.read_block(block, 0, &mut out, scratch).map(|()| out)
    }

    #[test]
    fn a_shard_that_is_cut_short_under_its_readers_is_an_error_for_each_and_harms_no_other_shard() {
        let Some(dir) = std::env::var_os(CHILD) else {
            let output =
                rerun("a_shard_that_is_cut_short_under_its_readers_is_an_error_for_each_and_harms_no_other_shard");
            assert!(
                output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
                "{output:?}"
            );
            return;
        };
        let (cut_path, whole_path) = (Path::new(&dir).join("cut.lat"), Path::new(&dir).join("whole.lat"));
        for path in [&cut_path, &whole_path] {
            fixture::write(path, fixture::header(64), fixture::SAMPLES).unwrap();
        }
        let (reader, whole) =
            (ShardReader::open(&cut_path, Io::Mmap).unwrap(), ShardReader::open(&whole_path, Io::Mmap).unwrap());
        let mut scratch = Scratch::new();
        let before = read(&reader, 1, &mut scratch).unwrap();
        thread::scope(|scope| {
            let readers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut scratch = Scratch::new();
                        loop {
                            match read(&reader, 1, &mut scratch) {
                                Ok(data) => assert_eq!(data, before, "never zeros"),
                                Err(error) => return error,
                            }
                        }
                    })
                })
                .collect();
            cut(&cut_path, 4096);
            for thread in readers {
                let error = thread.join().unwrap();
                let place = Place::Frame { block: 1, column: 0 };
                assert!(matches!(error, ShardError::Shrank { place: found, .. } if found == place), "{error}");
            }
        });
        let mut reports = Vec::new();
        let verified = reader.verify(&mut |error| reports.push(error));
        assert!(matches!(reports[..], [ShardError::Shrank { .. }]) && verified.bad == 1, "{reports:?}");
        whole.verify(&mut |error| panic!("{error}"));
        assert_eq!(read(&whole, 1, &mut scratch).unwrap(), before);
    }

    #[test]
    fn bytes_taken_in_place_are_in_doubt_once_the_shard_was_cut_short_and_not_before() {
        let Some(dir) = std::env::var_os(CHILD) else {
            let output = rerun("bytes_taken_in_place_are_in_doubt_once_the_shard_was_cut_short_and_not_before");
            assert!(
                output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
                "{output:?}"
            );
            return;
        };
        let path = Path::new(&dir).join("cut.lat");
        fixture::write(&path, fixture::header(64), fixture::SAMPLES).unwrap();
        let reader = ShardReader::open(&path, Io::Mmap).unwrap();
        // Column 1 is stored as it is.
        let (block, column, mut scratch) = (1, 1, Scratch::new());
        reader.verify_block(block, column, &mut scratch).unwrap();
        let values = reader.in_place(block, column).unwrap();
        let before = values.to_vec();
        reader.intact(block, column).unwrap();
        cut(&path, 4096);
        reader.intact(block, column).expect("nothing has been taken since");
        assert_ne!(values.to_vec(), before, "zeros in place of what is gone");
        let place = Place::Frame { block, column };
        let shrank =
            |result: Result<(), ShardError>| matches!(result, Err(ShardError::Shrank { place: at, .. }) if at == place);
        assert!(shrank(reader.intact(block, column)));
        assert!(shrank(reader.verify_block(block, column, &mut scratch)));
        assert!(shrank(reader.read_planes(block, column, &mut vec![0; before.len()], &mut scratch)));
        assert_eq!(reader.in_place(block, column).map(<[u8]>::len), Some(before.len()), "readable, if not right");
    }

    #[test]
    fn a_fault_in_a_mapping_of_somebody_else_still_ends_the_process() {
        let Some(dir) = std::env::var_os(CHILD) else {
            let output = rerun("a_fault_in_a_mapping_of_somebody_else_still_ends_the_process");
            assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
            return;
        };
        let path = Path::new(&dir).join("a");
        fs::write(&path, vec![1; 8192]).unwrap();
        let file = File::open(&path).unwrap();
        let _guarded = Map::open(&file, 8192).unwrap();
        // SAFETY: the file is cut short on purpose: the process is meant to die.
        let unguarded = unsafe { MmapOptions::new().len(8192).map(&file).unwrap() };
        cut(&path, 0);
        assert_ne!(std::hint::black_box(&unguarded)[5000], 1);
    }

    #[test]
    fn slots_are_given_back() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        for _ in 0..SLOTS + 10 {
            let map = Map::open(&file, 10).unwrap();
            assert_eq!(map.bytes(3, 7), Some(&[0; 7][..]));
            assert!(map.bytes(4, 7).is_none() && map.bytes(usize::MAX, 2).is_none() && !map.faulted());
        }
    }
}
