//! Module images: fat binaries, PTX text, cubins; picks the PTX out of them.
//!
//! A fat binary is a header (magic, version, header size, size of all entries) and entries, each
//! with a header of its own (kind, header size, payload size, compressed size, architecture,
//! flags). Source: read from what nvcc 13.0 writes, checked against `cuobjdump`.

use crate::abi::{Code, Result};

const FATBIN_MAGIC: u32 = 0xBA55_ED50;
const WRAPPER_MAGIC: u32 = 0x4662_43B1;
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const KIND_PTX: u16 = 1;
const KIND_ELF: u16 = 2;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;
/// No module of ours comes near; a header that asks for more is damaged.
const IMAGE_BYTES_MAX: u64 = 1 << 30;

/// What the engine needs of a module image.
pub struct Image {
    pub ptx: String,
    /// The cubin for this architecture, if the image holds one: it knows the registers of each
    /// kernel.
    pub cubin: Option<Vec<u8>>,
}

impl Image {
    /// Turns every addition of f32 numbers in `kernel` into a subtraction, if the image holds it.
    pub fn plant_bug(&mut self, kernel: &str) {
        const ENTRY: &str = ".entry ";
        let Some(start) = self.ptx.find(&format!("{ENTRY}{kernel}(")) else { return };
        let from = start + ENTRY.len();
        let end = self.ptx[from..].find(ENTRY).map_or(self.ptx.len(), |at| from + at);
        let mut body = self.ptx[start..end].to_owned();
        for rounding in ["", ".rn", ".ftz", ".rn.ftz"] {
            let [add, sub] = ["add", "sub"].map(|op| format!("{op}{rounding}.f32"));
            body = body.replace(&add, &sub);
        }
        eprintln!("virtual GPU: injected fault: {kernel} subtracts where it should add");
        self.ptx.replace_range(start..end, &body);
    }
}

/// Takes the PTX for compute capability `sm` out of the image at `image`.
///
/// Errors: `INVALID_IMAGE` for what is none of the known forms; `NO_BINARY_FOR_GPU` for images
/// without PTX that this device could run; each with a line on stderr.
///
/// # Safety
/// `image` points at a complete image, as `cuModuleLoadData` demands.
pub unsafe fn find_ptx(image: *const u8, sm: u32) -> Result<Image> {
    // SAFETY: every form of image is longer than 4 bytes.
    let magic = unsafe { std::slice::from_raw_parts(image, 4) };
    if magic == ELF_MAGIC {
        eprintln!("virtual GPU: the module image is a cubin; this device runs PTX only");
        return Err(Code::NO_BINARY_FOR_GPU);
    }
    if magic == FATBIN_MAGIC.to_le_bytes() {
        // SAFETY: the header says how long the container is.
        return unsafe { from_fatbin(image, sm) };
    }
    if magic == WRAPPER_MAGIC.to_le_bytes() {
        // SAFETY: a wrapper holds magic, version and then the address of the container.
        return unsafe { from_fatbin(*image.add(8).cast::<*const u8>(), sm) };
    }
    // SAFETY: what is left is text with a closing zero.
    let text = unsafe { std::ffi::CStr::from_ptr(image.cast()) };
    match text.to_str() {
        Ok(text) if text.contains(".version") => Ok(Image { ptx: text.to_owned(), cubin: None }),
        _ => {
            eprintln!("virtual GPU: the module image is no fat binary, cubin or PTX text");
            Err(Code::INVALID_IMAGE)
        }
    }
}

/// # Safety
/// `image` points at a fat binary.
unsafe fn from_fatbin(image: *const u8, sm: u32) -> Result<Image> {
    // SAFETY: the header has 16 bytes.
    let header = unsafe { std::slice::from_raw_parts(image, 16) };
    let header_bytes = u64::from(u16_at(header, 6)?);
    let total_bytes = u64_at(header, 8)?;
    if header_bytes < 16 || total_bytes > IMAGE_BYTES_MAX {
        eprintln!("virtual GPU: the fat binary's header is damaged");
        return Err(Code::INVALID_IMAGE);
    }
    let len = (header_bytes + total_bytes) as usize;
    // SAFETY: the header says that the container has so many bytes.
    let container = unsafe { std::slice::from_raw_parts(image, len) };
    pick(&entries(&container[header_bytes as usize..])?, sm)
}

struct Entry<'a> {
    kind: u16,
    sm: u32,
    flags: u64,
    payload: &'a [u8],
    plain_bytes: u64,
}

fn entries(mut rest: &[u8]) -> Result<Vec<Entry<'_>>> {
    let mut entries = Vec::new();
    while rest.len() >= 64 {
        let header_bytes = u32_at(rest, 4)? as usize;
        let payload_bytes = u64_at(rest, 8)? as usize;
        let compressed_bytes = u32_at(rest, 16)? as usize;
        let payload = rest
            .get(header_bytes..)
            .and_then(|rest| rest.get(..payload_bytes))
            .ok_or_else(|| damaged("an entry is longer than the container"))?;
        let payload = match compressed_bytes {
            0 => payload,
            // The payload is padded to 8 bytes.
            _ => payload.get(..compressed_bytes).ok_or_else(|| damaged("a size is wrong"))?,
        };
        entries.push(Entry {
            kind: u16_at(rest, 0)?,
            sm: u32_at(rest, 28)?,
            flags: u64_at(rest, 40)?,
            payload,
            plain_bytes: u64_at(rest, 56)?,
        });
        rest = &rest[header_bytes + payload_bytes..];
    }
    Ok(entries)
}

/// As the driver chooses: the newest PTX that is not newer than the device.
fn pick(entries: &[Entry<'_>], sm: u32) -> Result<Image> {
    let ptx = entries
        .iter()
        .filter(|entry| entry.kind == KIND_PTX && entry.sm <= sm)
        .max_by_key(|entry| entry.sm);
    let Some(ptx) = ptx else {
        eprintln!("virtual GPU: the fat binary holds no PTX for sm_{sm} or older");
        return Err(Code::NO_BINARY_FOR_GPU);
    };
    let text = decompress(ptx)?;
    let text = String::from_utf8(text).map_err(|_| damaged("its PTX is no text"))?;
    let cubin = entries
        .iter()
        .find(|entry| entry.kind == KIND_ELF && entry.sm == sm)
        .map(decompress)
        .transpose()?;
    Ok(Image { ptx: text.trim_end_matches('\0').to_owned(), cubin })
}

fn decompress(entry: &Entry<'_>) -> Result<Vec<u8>> {
    if entry.flags & FLAG_ZSTD != 0 {
        return zstd_unsupported();
    }
    if entry.flags & FLAG_LZ4 == 0 {
        return Ok(entry.payload.to_vec());
    }
    lz4_block(entry.payload, entry.plain_bytes as usize)
        .ok_or_else(|| damaged("a compressed entry does not decompress"))
}

fn zstd_unsupported() -> Result<Vec<u8>> {
    eprintln!(
        "virtual GPU: the fat binary is compressed with zstd; build it with -Xfatbinary \
         --no-compress"
    );
    Err(Code::NO_BINARY_FOR_GPU)
}

/// One LZ4 block. Source: "LZ4 Block Format Description", lz4 repository.
fn lz4_block(input: &[u8], plain_bytes: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(plain_bytes.min(IMAGE_BYTES_MAX as usize));
    let mut at = 0;
    while out.len() < plain_bytes {
        let token = *input.get(at)?;
        at += 1;
        let literals = lz4_length(input, &mut at, usize::from(token >> 4))?;
        out.extend_from_slice(input.get(at..at + literals)?);
        at += literals;
        if out.len() >= plain_bytes {
            break;
        }
        let offset = usize::from(u16_at(input, at).ok()?);
        at += 2;
        let matched = lz4_length(input, &mut at, usize::from(token & 15))? + 4;
        let start = out.len().checked_sub(offset).filter(|_| offset > 0)?;
        // The match may overlap what it writes, so byte by byte.
        for i in start..start + matched {
            out.push(out[i]);
        }
    }
    (out.len() == plain_bytes).then_some(out)
}

fn lz4_length(input: &[u8], at: &mut usize, start: usize) -> Option<usize> {
    let mut length = start;
    if start == 15 {
        loop {
            let byte = *input.get(*at)?;
            *at += 1;
            length += usize::from(byte);
            if byte != 255 {
                break;
            }
        }
    }
    Some(length)
}

fn damaged(what: &str) -> Code {
    eprintln!("virtual GPU: the fat binary is damaged: {what}");
    Code::INVALID_IMAGE
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = bytes.get(at..at + N).ok_or_else(|| damaged("it ends early"))?;
    Ok(bytes.try_into().expect("N bytes were taken"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

/// Registers per thread of a kernel: cubins keep them in the top byte of `sh_info` of its code
/// section.
pub fn registers_of(cubin: &[u8], kernel: &str) -> Option<u32> {
    let sections_at = u64_at(cubin, 40).ok()? as usize;
    let section_bytes = usize::from(u16_at(cubin, 58).ok()?);
    let num_sections = usize::from(u16_at(cubin, 60).ok()?);
    let names_index = usize::from(u16_at(cubin, 62).ok()?);
    let section = |index: usize| cubin.get(sections_at + index * section_bytes..);
    let names_at = u64_at(section(names_index)?, 24).ok()? as usize;
    let wanted = format!(".text.{kernel}\0");
    (0..num_sections).filter_map(section).find_map(|header| {
        let name_at = names_at + u32_at(header, 0).ok()? as usize;
        let is_it = cubin.get(name_at..)?.starts_with(wanted.as_bytes());
        is_it.then(|| u32_at(header, 44).ok().map(|info| info >> 24)).flatten()
    })
}
