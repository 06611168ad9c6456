//! The three tables of a kernel's parameters must agree: Rust's, the PTX's and the machine code's.
//! The driver's launch call knows no types, so nothing else would notice a u32 passed for a u64.

use super::compile::Module;
use super::facts::{Place, cubin_params, ptx_params};
use anyhow::Result;
use kernels::device::cuda::{KernelSpec, Param};
use std::collections::{BTreeMap, BTreeSet};

/// Architectures whose machine code is compared: one that keeps parameters where all up to sm_89
/// do, and one of those after.
const ARCHITECTURES: [&str; 2] = ["80", "90"];

/// Every difference, in words.
pub fn differences(specs: &[&KernelSpec], modules: &[Module]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for spec in specs {
        if !names.insert(spec.name) {
            found.push(format!("{}: twice in the tables", spec.name));
        }
        if !modules.iter().any(|m| m.name == spec.module) {
            found.push(format!("{}: there is no {}.cu", spec.name, spec.module));
        }
    }
    for module in modules {
        let of_module: Vec<&KernelSpec> =
            specs.iter().copied().filter(|s| s.module == module.name).collect();
        found.extend(compare_ptx(&of_module, &module.name, &ptx_params(&module.ptx)));
        for arch in ARCHITECTURES {
            let cubin = cubin_params(&module.read(arch, "-elf")?);
            found.extend(compare_cubin(&of_module, arch, &cubin));
        }
    }
    Ok(found)
}

fn compare_ptx(
    specs: &[&KernelSpec],
    module: &str,
    ptx: &BTreeMap<String, Vec<String>>,
) -> Vec<String> {
    let mut found = Vec::new();
    for name in ptx.keys().filter(|name| !specs.iter().any(|s| s.name == name.as_str())) {
        found.push(format!("{name}: in {module}.cu, but in no table of Rust"));
    }
    for spec in specs {
        let Some(types) = ptx.get(spec.name) else {
            found.push(format!("{}: in Rust's table, but not in {module}.cu", spec.name));
            continue;
        };
        let fits = |(param, ty): (&Param, &String)| ptx_types(*param).contains(&ty.as_str());
        if types.len() != spec.params.len() || !spec.params.iter().zip(types).all(fits) {
            found.push(format!("{}: Rust has {:?}, the PTX {types:?}", spec.name, spec.params));
        }
    }
    found
}

fn compare_cubin(
    specs: &[&KernelSpec],
    arch: &str,
    cubin: &BTreeMap<String, Vec<Place>>,
) -> Vec<String> {
    let mut found = Vec::new();
    for spec in specs {
        let expected = places(spec.params);
        let actual = cubin.get(spec.name);
        if actual != Some(&expected) {
            let actual = actual.map_or("nothing".to_string(), |places| format!("{places:?}"));
            let name = spec.name;
            found.push(format!("{name}: Rust has {expected:?}, the code for sm_{arch} {actual}"));
        }
    }
    found
}

/// How nvcc may write a parameter: pointers and whole numbers are unsigned, whatever their C type.
fn ptx_types(param: Param) -> &'static [&'static str] {
    match param {
        Param::Ptr | Param::U64 => &["u64"],
        Param::U32 => &["u32"],
        Param::I32 => &["u32", "s32"],
        Param::F32 => &["f32"],
    }
}

/// Where the parameters lie: each at the next multiple of its size.
pub fn places(params: &[Param]) -> Vec<Place> {
    let mut end = 0usize;
    let mut place = |param: &Param| {
        let size = param.bytes();
        let offset = end.next_multiple_of(size);
        end = offset + size;
        Place { offset, size }
    };
    params.iter().map(&mut place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: KernelSpec =
        KernelSpec { module: "m", name: "k", params: &[Param::Ptr, Param::U32, Param::U64] };

    fn ptx(name: &str, types: &[&str]) -> BTreeMap<String, Vec<String>> {
        [(name.to_string(), types.iter().map(|t| t.to_string()).collect())].into()
    }

    fn cubin(places: &[(usize, usize)]) -> BTreeMap<String, Vec<Place>> {
        let places = places.iter().map(|&(offset, size)| Place { offset, size }).collect();
        [("k".to_string(), places)].into()
    }

    #[test]
    fn equal_tables_have_no_differences() {
        assert!(compare_ptx(&[&SPEC], "m", &ptx("k", &["u64", "u32", "u64"])).is_empty());
        assert!(compare_cubin(&[&SPEC], "80", &cubin(&[(0, 8), (8, 4), (16, 8)])).is_empty());
    }

    #[test]
    fn a_u32_passed_for_a_u64_is_told() {
        let found = compare_ptx(&[&SPEC], "m", &ptx("k", &["u64", "u64", "u64"]));
        assert_eq!(found.len(), 1, "{found:?}");
        let found = compare_cubin(&[&SPEC], "90", &cubin(&[(0, 8), (8, 8), (16, 8)]));
        assert!(found[0].contains("sm_90"), "{found:?}");
    }

    #[test]
    fn another_order_or_number_of_parameters_is_told() {
        for types in [&["u32", "u64", "u64"][..], &["u64", "u32"], &["u64", "u32", "u64", "f32"]] {
            assert_eq!(compare_ptx(&[&SPEC], "m", &ptx("k", types)).len(), 1, "{types:?}");
        }
        assert_eq!(compare_cubin(&[&SPEC], "80", &cubin(&[(0, 8), (8, 4)])).len(), 1);
    }

    #[test]
    fn a_kernel_that_only_one_table_has_is_told() {
        let found = compare_ptx(&[&SPEC], "m", &ptx("other", &[]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("in no table of Rust") && found[1].contains("not in m.cu"));
        assert_eq!(compare_cubin(&[&SPEC], "80", &BTreeMap::new()).len(), 1);
    }
}
