//! JPEG by libjpeg-turbo's arithmetic, through `mozjpeg-sys`: bit-equal to what Pillow 12 decodes.
//!
//! libjpeg reports an error by a callback that must not return. Ours unwinds, as its C code is compiled to allow, and
//! [`decode`] catches that: bad data is an [`ImageFault`] and nothing is printed. libjpeg only warns where data is cut
//! short or damaged, and goes on with grey; here such a warning ends the decoding too. Pillow is as lenient as libjpeg:
//! of damaged files it makes pictures that are not made here.
//!
//! Not here: the choice of a colour space, which [`Colour::of`] makes for either decoder, and 12-bit, lossless and
//! hierarchical files, which are refused by their headers.
#![expect(unsafe_code, reason = "libjpeg's interface is C: raw pointers, and structures that it fills")]

use std::any::Any;
use std::ffi::{c_int, c_ulong};
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;

use mozjpeg_sys as sys;

use super::ImageFault;
use super::colour::{Colour, cmyk_to_rgb};
use super::jpeg::Header;

#[cfg(panic = "abort")]
compile_error!("the feature libjpeg needs panic = \"unwind\": libjpeg's errors are unwound");

/// libjpeg's longest message, with its closing zero (`JMSG_LENGTH_MAX`).
const MESSAGE: usize = 200;

/// Warnings behind which every pixel is as it was written: an Adobe or JFIF marker of an unknown version, and bytes
/// that nothing needs between coded data and the next marker.
const HARMLESS: [sys::J_MESSAGE_CODE; 3] = [sys::JWRN_ADOBE_XFORM, sys::JWRN_JFIF_MAJOR, sys::JWRN_EXTRANEOUS_DATA];

/// What a callback of libjpeg unwinds with: the message.
struct Stopped(String);

/// The pixels as RGB, row after row, of a file whose header has been checked.
pub(super) fn decode(bytes: &[u8], header: &Header, colour: Colour) -> Result<Vec<u8>, ImageFault> {
    let damaged = |reason| ImageFault::Damaged { format: "JPEG", reason };
    // Nothing outlives the closure but its result, so nothing half-done can be seen behind it.
    let samples = panic::catch_unwind(AssertUnwindSafe(|| decompress(bytes, header, colour)))
        .unwrap_or_else(|payload| Err(message_of(payload)))
        .map_err(damaged)?;
    Ok(match colour {
        Colour::Gray | Colour::Rgb | Colour::YCbCr => samples,
        Colour::Cmyk | Colour::Ycck => cmyk_to_rgb(&samples),
    })
}

/// The message that a callback unwound with. Any other panic is none of libjpeg's, and goes on.
fn message_of(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<Stopped>() {
        Ok(stopped) => stopped.0,
        Err(other) => panic::resume_unwind(other),
    }
}

/// Gives libjpeg's memory back, also when its error handler unwinds.
struct Decompressor(sys::jpeg_decompress_struct);

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: libjpeg accepts a structure in any state, zeroed included: without a memory manager nothing is freed.
        unsafe { sys::jpeg_destroy_decompress(&mut self.0) }
    }
}

/// RGB, or the stored CMYK values for a file of four components.
///
/// # Panics
///
/// Unwinds with [`Stopped`] from libjpeg's callbacks.
fn decompress(bytes: &[u8], header: &Header, colour: Colour) -> Result<Vec<u8>, String> {
    let length = c_ulong::try_from(bytes.len()).map_err(|_| "the file is too long for libjpeg".to_owned())?;
    let (stored, wanted) = match colour {
        Colour::Gray => (sys::JCS_GRAYSCALE, sys::JCS_RGB),
        Colour::Rgb => (sys::JCS_RGB, sys::JCS_RGB),
        Colour::YCbCr => (sys::JCS_YCbCr, sys::JCS_RGB),
        Colour::Cmyk => (sys::JCS_CMYK, sys::JCS_CMYK),
        Colour::Ycck => (sys::JCS_YCCK, sys::JCS_CMYK),
    };
    let channels = if wanted == sys::JCS_RGB { 3 } else { 4 };

    // SAFETY: both are C structures of numbers, enumerations with a zero, null pointers and absent functions.
    let mut errors: sys::jpeg_error_mgr = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut decompressor = Decompressor(unsafe { mem::zeroed() });
    // SAFETY: it only fills the structure.
    unsafe { sys::jpeg_std_error(&mut errors) };
    errors.error_exit = Some(stop);
    errors.emit_message = Some(stop_at_warnings);
    let info = &mut decompressor.0;
    info.common.err = &raw mut errors;
    // SAFETY: the error manager is set. It and `bytes` stand in the caller's frames for as long as `info` is used:
    // `errors` is declared before `decompressor` and so dropped after it.
    unsafe {
        sys::jpeg_create_decompress(info);
        sys::jpeg_mem_src(info, bytes.as_ptr(), length);
        sys::jpeg_read_header(info, 1);
    }
    let read = (info.image_width as usize, info.image_height as usize, info.num_components);
    if (read.0, read.1) != (header.width, header.height) || usize::try_from(read.2) != Ok(header.components.len()) {
        return Err("there are two frame headers".to_owned());
    }
    info.jpeg_color_space = stored;
    info.out_color_space = wanted;
    // SAFETY: the header has been read; the fields set above are those that libjpeg lets a caller choose.
    unsafe { sys::jpeg_start_decompress(info) };

    let stride = header.width * channels;
    if info.output_width as usize * info.output_components as usize != stride {
        return Err("libjpeg gives rows of another length".to_owned());
    }
    let mut samples = vec![0; stride * header.height];
    for row in samples.chunks_exact_mut(stride) {
        let mut row = row.as_mut_ptr();
        // SAFETY: libjpeg writes one row of `output_width * output_components` values, which is its length.
        let rows = unsafe { sys::jpeg_read_scanlines(info, &raw mut row, 1) };
        if rows != 1 {
            return Err("libjpeg gives fewer rows than the header says".to_owned());
        }
    }
    // Reads on to the end marker, and so sees what is wrong behind the last row.
    // SAFETY: all rows have been read.
    unsafe { sys::jpeg_finish_decompress(info) };
    Ok(samples)
}

/// libjpeg's `error_exit`: must not return.
unsafe extern "C-unwind" fn stop(info: &mut sys::jpeg_common_struct) {
    // SAFETY: libjpeg calls this with the error manager set that holds the message.
    let message = unsafe { message(info) };
    // Unwinds without the panic hook, which would print.
    panic::resume_unwind(Box::new(Stopped(message)));
}

/// libjpeg's `emit_message`: a negative level is a warning, others trace what it does.
unsafe extern "C-unwind" fn stop_at_warnings(info: &mut sys::jpeg_common_struct, level: c_int) {
    // SAFETY: libjpeg calls this with the error manager set.
    let code = unsafe { (*info.err).msg_code };
    if level < 0 && !HARMLESS.iter().any(|harmless| i64::from(*harmless) == i64::from(code)) {
        // SAFETY: as above.
        unsafe { stop(info) }
    }
}

/// The text of the present message.
///
/// # Safety
///
/// `info.err` points to an error manager that `jpeg_std_error` filled.
unsafe fn message(info: &mut sys::jpeg_common_struct) -> String {
    // The binding says that the buffer is not written and has 80 bytes; in libjpeg it is a `char *` of JMSG_LENGTH_MAX.
    type Format = unsafe extern "C-unwind" fn(*mut sys::jpeg_common_struct, *mut u8);
    let mut text = [0_u8; MESSAGE];
    // SAFETY: by this function's contract.
    if let Some(format) = unsafe { (*info.err).format_message } {
        // SAFETY: both types are functions of two pointers. The standard formatter writes at most MESSAGE bytes.
        let format: Format = unsafe { mem::transmute(format) };
        // SAFETY: as above.
        unsafe { format(ptr::from_mut(info), text.as_mut_ptr()) };
    }
    text.split(|byte| *byte == 0).next().map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
}
