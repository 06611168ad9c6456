//! What compilers and disassemblers say of a kernel, read from their text.

use super::compile::{ARCHITECTURES, Module};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// What one architecture's code of a kernel takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    pub registers: u32,
    pub stack_bytes: u32,
    pub spill_bytes: u32,
    /// Fixed at compile time; dynamic shared memory comes on top.
    pub static_shared_bytes: u32,
}

/// Instructions in one architecture's code of a kernel (as written, not as executed).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sass {
    /// Matrix products.
    pub hmma: u32,
    /// Matrix loads from shared memory.
    pub ldsm: u32,
    /// Copies from global to shared memory.
    pub ldgsts: u32,
    /// Loads and stores of local memory.
    pub local: u32,
}

/// Place and size of a parameter in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub offset: usize,
    pub size: usize,
}

#[derive(Debug)]
pub struct Kernel {
    pub name: String,
    /// From `__launch_bounds__`.
    pub threads_max: u32,
    /// In the order of `ARCHITECTURES`.
    pub resources: Vec<Resources>,
    pub sass: Vec<Sass>,
}

impl Kernel {
    pub fn resources_on(&self, arch: &str) -> Resources {
        let at = ARCHITECTURES.iter().position(|a| *a == arch).expect("a known architecture");
        self.resources[at]
    }

    /// The most that any architecture takes.
    pub fn registers_max(&self) -> u32 {
        self.resources.iter().map(|r| r.registers).max().unwrap_or(0)
    }

    pub fn static_shared_max(&self) -> u32 {
        self.resources.iter().map(|r| r.static_shared_bytes).max().unwrap_or(0)
    }
}

/// All kernels of a module, in the order of the PTX.
pub fn kernels(module: &Module) -> Result<Vec<Kernel>> {
    let resources = resources(&module.log)?;
    let sass = ARCHITECTURES.map(|arch| module.read(arch, "-sass").map(|text| sass(&text)));
    let sass = sass.into_iter().collect::<Result<Vec<_>>>()?;
    let of = |name: &str, threads_max: u32| -> Result<Kernel> {
        let find = |arch: &str| resources.get(&(name.to_string(), arch.to_string())).copied();
        let missing = || format!("{name}: ptxas says nothing of it");
        let resources = ARCHITECTURES.map(find).into_iter().collect::<Option<Vec<_>>>();
        let sass = sass.iter().map(|s| s.get(name).copied()).collect::<Option<Vec<_>>>();
        Ok(Kernel {
            name: name.to_string(),
            threads_max,
            resources: resources.with_context(missing)?,
            sass: sass.with_context(|| format!("{name}: no machine code"))?,
        })
    };
    entries(&module.ptx).into_iter().map(|(name, threads)| of(&name, threads)).collect()
}

/// Names and `.maxntid` of the kernels of a PTX text.
fn entries(ptx: &str) -> Vec<(String, u32)> {
    let mut entries: Vec<(String, u32)> = Vec::new();
    for line in ptx.lines() {
        if let Some(rest) = line.strip_prefix(".visible .entry ") {
            let name = rest.split('(').next().unwrap_or_default().trim();
            entries.push((name.to_string(), 0));
        } else if let (Some(rest), Some(last)) =
            (line.strip_prefix(".maxntid "), entries.last_mut())
        {
            last.1 = rest.split(',').next().and_then(|x| x.trim().parse().ok()).unwrap_or(0);
        }
    }
    entries
}

/// (kernel, architecture) -> resources, from the text of `ptxas -v`.
fn resources(log: &str) -> Result<BTreeMap<(String, String), Resources>> {
    let mut all = BTreeMap::new();
    let mut current: Option<(String, String)> = None;
    let mut found = Resources::default();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut parts = rest.split('\'');
            let name = parts.next().context("the kernel's name")?;
            let arch =
                parts.nth(1).and_then(|a| a.strip_prefix("sm_")).context("its architecture")?;
            current = Some((name.to_string(), arch.to_string()));
            found = Resources::default();
        } else if line.contains("bytes stack frame") {
            found.stack_bytes = number_before(line, " bytes stack frame").unwrap_or(0);
            let stores = number_before(line, " bytes spill stores").unwrap_or(0);
            found.spill_bytes = stores + number_before(line, " bytes spill loads").unwrap_or(0);
        } else if let Some(registers) = number_before(line, " registers") {
            found.registers = registers;
            found.static_shared_bytes = number_before(line, " bytes smem").unwrap_or(0);
            all.insert(current.take().with_context(|| format!("whose is `{line}`?"))?, found);
        }
    }
    ensure!(!all.is_empty(), "ptxas named no kernel");
    Ok(all)
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    let before = line.split(unit).next().filter(|before| before.len() < line.len())?;
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Kernel -> its instructions, from the text of `cuobjdump -sass`.
fn sass(text: &str) -> BTreeMap<String, Sass> {
    let mut all = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some((_, name)) = line.split_once("Function : ") {
            current = Some(name.trim().to_string());
            all.insert(name.trim().to_string(), Sass::default());
            continue;
        }
        let Some(counts) = current.as_ref().and_then(|name| all.get_mut(name)) else { continue };
        match opcode(line) {
            Some("HMMA") => counts.hmma += 1,
            Some("LDSM") => counts.ldsm += 1,
            Some("LDGSTS") => counts.ldgsts += 1,
            Some("LDL" | "STL") => counts.local += 1,
            _ => {}
        }
    }
    all
}

/// The name of a line's instruction without its modifiers: `/*00d0*/ @P4 LDG.E R4, ...` -> `LDG`.
fn opcode(line: &str) -> Option<&str> {
    let (_, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let mut words = rest.split_whitespace();
    let mut word = words.next()?;
    if word.starts_with('@') {
        word = words.next()?;
    }
    word.split('.').next().filter(|op| op.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// Kernel -> places of its parameters, from the text of `cuobjdump -elf` (EIATTR_KPARAM_INFO).
pub fn cubin_params(text: &str) -> BTreeMap<String, Vec<Place>> {
    let mut all: BTreeMap<String, Vec<Place>> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(section) = line.strip_prefix('.') {
            current = section.strip_prefix("nv.info.").map(|name| name.trim().to_string());
            // A kernel without parameters is listed, too.
            if let Some(name) = &current {
                all.entry(name.clone()).or_default();
            }
        }
        let (Some(name), true) = (&current, line.contains("Ordinal :")) else { continue };
        let field = |key: &str| {
            let value = line.split(key).nth(1)?.trim_start().strip_prefix(": 0x")?;
            usize::from_str_radix(value.split_whitespace().next()?, 16).ok()
        };
        if let (Some(ordinal), Some(offset), Some(size)) =
            (field("Ordinal"), field("Offset"), field("Size"))
        {
            let places = all.entry(name.clone()).or_default();
            if places.len() <= ordinal {
                places.resize(ordinal + 1, Place { offset: usize::MAX, size: 0 });
            }
            places[ordinal] = Place { offset, size };
        }
    }
    all
}

/// Kernel -> types of its parameters without the dot, from the PTX.
pub fn ptx_params(ptx: &str) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    let mut current: Option<(String, Vec<String>)> = None;
    for line in ptx.lines() {
        if let Some(rest) = line.strip_prefix(".visible .entry ") {
            let name = rest.split('(').next().unwrap_or_default().trim().to_string();
            current = Some((name, Vec::new()));
        } else if let Some(rest) = line.trim_start().strip_prefix(".param .")
            && let Some((_, types)) = &mut current
        {
            types.push(rest.split_whitespace().next().unwrap_or_default().to_string());
        }
        // The list ends with a parenthesis of its own, or at once.
        if line.trim_end().ends_with(')') {
            all.extend(current.take());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a_f16' for 'sm_80'
ptxas info    : Function properties for a_f16
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 115 registers, used 1 barriers, 32 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 361.470 ms
ptxas info    : Compiling entry function 'a_f16' for 'sm_90'
ptxas info    : Function properties for a_f16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers
";

    #[test]
    fn registers_spills_and_shared_memory_are_read_for_each_architecture() {
        let all = resources(LOG).expect("a known text");
        let old = all[&("a_f16".to_string(), "80".to_string())];
        let expected =
            Resources { registers: 115, stack_bytes: 16, spill_bytes: 20, static_shared_bytes: 32 };
        assert_eq!(old, expected);
        let new = all[&("a_f16".to_string(), "90".to_string())];
        assert_eq!(new, Resources { registers: 90, ..Resources::default() });
    }

    #[test]
    fn instructions_are_counted_by_name_and_not_by_part_of_a_name() {
        let text = "\
\t\tFunction : a
        /*0000*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;  /* 0x1 */
                                                                          /* 0x000fe40000000f00 */
        /*0010*/               @P0 LDSM.16.M88.4 R4, [R8] ;               /* 0x2 */
        /*0020*/                   HFMA2.MMA R5, -RZ, RZ, 0, 2 ;          /* 0x3 */
        /*0030*/              @!P1 LDGSTS.E.128 [R1], [R2.64] ;           /* 0x4 */
        /*0040*/                   LDL R1, [R1+0x4] ;                     /* 0x5 */
\t\tFunction : b
        /*0000*/                   STL [R1], R2 ;                         /* 0x6 */
";
        let all = sass(text);
        assert_eq!(all["a"], Sass { hmma: 1, ldsm: 1, ldgsts: 1, local: 1 });
        assert_eq!(all["b"], Sass { local: 1, ..Sass::default() });
    }

    #[test]
    fn parameters_of_machine_code_come_in_their_order() {
        let text = "\
.nv.info
\tAttribute:\tEIATTR_REGCOUNT
.nv.info.a
\tAttribute:\tEIATTR_KPARAM_INFO
\tValue:\tIndex : 0x0\tOrdinal : 0x1\tOffset  : 0x8\tSize    : 0x4
\tValue:\tIndex : 0x0\tOrdinal : 0x0\tOffset  : 0x0\tSize    : 0x8
.text.a
";
        let expected = vec![Place { offset: 0, size: 8 }, Place { offset: 8, size: 4 }];
        assert_eq!(cubin_params(text)["a"], expected);
    }

    #[test]
    fn parameters_of_ptx_are_those_of_the_entry() {
        let text = "\
.visible .entry a(
.param .u64 a_param_0,
.param .f32 a_param_1
)
.maxntid 256, 1, 1
{
.visible .entry none()
{
";
        let all = ptx_params(text);
        assert_eq!(all["a"], ["u64", "f32"]);
        assert!(all["none"].is_empty());
        let threads: Vec<u32> = entries(text).into_iter().map(|(_, threads)| threads).collect();
        assert_eq!(threads, [256, 0]);
    }
}
