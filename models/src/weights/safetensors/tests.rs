use super::*;

fn file(header: &str, data_len: usize) -> Bytes {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data_len).map(|i| i as u8));
    bytes.into()
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
    "norm.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
    "lm_head.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]}}"#;

fn check_refused(header: &str, data_len: usize, words: &str) {
    let reason = parse(&file(header, data_len)).err().expect(words);
    assert!(reason.contains(words), "{reason:?} does not say {words:?}");
}

fn tensor(dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
}

#[test]
fn tensors_are_views_of_the_file() {
    let entries = parse(&file(GOOD, 20)).unwrap();
    let head = &entries["lm_head.weight"];
    assert_eq!((&head.dtype[..], &head.shape[..]), ("BF16", &[2, 3][..]));
    assert_eq!(&head.bytes[..2], [8, 9]);
    assert_eq!(entries.len(), 2);
}

#[test]
fn headers_that_lie_are_refused() {
    check_refused(&tensor("F32", "[2]", 0, 8), 7, "outside the data");
    check_refused(&tensor("F32", "[2]", 8, 0), 8, "outside the data");
    check_refused(&tensor("F32", "[3]", 0, 8), 8, "has 8 bytes");
    check_refused(&tensor("F32", "[9223372036854775807,4]", 0, 8), 8, "has 8 bytes");
    check_refused(&tensor("F32", "[1,1,1,1,1,1,1,1,2]", 0, 8), 8, "has 8 bytes");
    check_refused(&tensor("F31", "[2]", 0, 8), 8, "dtype F31");
    check_refused(&tensor("F32", "[-1]", 0, 8), 8, "broken");
    check_refused("[]", 0, "broken");
    check_refused("{", 0, "broken");
    let shared = GOOD.replace("[8,20]", "[4,16]");
    check_refused(&shared, 20, "share the bytes at 4");
    let twice = GOOD.replace("lm_head", "norm");
    check_refused(&twice, 20, "norm.weight is there twice");
    for size in [9u64, u64::MAX, HEADER_BYTES_MAX as u64 + 1] {
        let mut bytes = file(GOOD, 20)[..16].to_vec();
        bytes[..8].copy_from_slice(&size.to_le_bytes());
        assert!(parse(&bytes.into()).err().unwrap().contains("a header of"));
    }
    assert!(parse(&Bytes::from_static(b"1234567")).is_err());
}

#[test]
fn damaged_files_never_panic() {
    let good = file(GOOD, 20);
    for len in 0..good.len() {
        let _ = parse(&good.slice(..len));
    }
    let mut opened = 0;
    for at in 0..good.len() - 20 {
        for value in *b"\0\"{}[]9-,: \xff" {
            let mut bytes = good.to_vec();
            bytes[at] = value;
            opened += usize::from(parse(&bytes.into()).is_ok());
        }
    }
    assert!(opened > 100, "only {opened} damaged files opened: the test no longer reaches far");
}

/// A folder with two shards whose index places `a` and `b`.
fn shards(index: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, shard) in [("a", "1.safetensors"), ("b", "2.safetensors")] {
        let header = tensor("F16", "[2]", 0, 4).replace(r#""a""#, &format!("{name:?}"));
        std::fs::write(folder.path().join(shard), file(&header, 4)).unwrap();
    }
    std::fs::write(folder.path().join(INDEX), index).unwrap();
    folder
}

#[test]
fn index_joins_shards_and_stays_in_its_folder() {
    let folder = shards(r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#);
    let weights = open(folder.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"]);
    assert!(weights.take("a", &[2]).is_ok());
    assert!(matches!(weights.take("a", &[3]), Err(LoadError::TensorShape { .. })));
    assert!(matches!(weights.take("c", &[3]), Err(LoadError::MissingTensor { .. })));
    let refused = [
        (r#"{"weight_map":{"a":"2.safetensors"}}"#, "places a here"),
        (r#"{"weight_map":{"a":"../1.safetensors"}}"#, "no safetensors file here"),
        (r#"{"weight_map":{"a":"/1.safetensors"}}"#, "no safetensors file here"),
        (r#"{"weight_map":{"a":"model.bin"}}"#, "no safetensors file here"),
        (r#"{"weight_map":{"a":7}}"#, "no safetensors file here"),
        (r#"{"weight_map":[]}"#, "weight_map is missing"),
        (r#"{"weight_map":{"a":"3.safetensors"}}"#, "cannot read"),
    ];
    for (index, words) in refused {
        let error = open(shards(index).path()).expect_err(words).to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
}

#[test]
fn other_dtypes_are_refused_only_when_taken() {
    let folder = tempfile::tempdir().unwrap();
    let write = |header: &str| std::fs::write(folder.path().join(SINGLE), file(header, 8)).unwrap();
    write(&tensor("F8_E4M3", "[8]", 0, 8));
    let weights = open(folder.path()).unwrap();
    let error = weights.take("a", &[8]).unwrap_err().to_string();
    assert!(error.contains("F8_E4M3"), "{error}");
    std::fs::remove_file(folder.path().join(SINGLE)).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("neither model.safetensors nor"), "{error}");
}

#[test]
fn prefixes_of_other_exports_mean_the_same_tensors() {
    let folder = tempfile::tempdir().unwrap();
    for (name, canonical) in [
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("norm.weight", "model.norm.weight"),
        ("model.visual.norm.weight", "model.visual.norm.weight"),
    ] {
        let header = tensor("F32", "[2]", 0, 8).replace(r#""a""#, &format!("{name:?}"));
        std::fs::write(folder.path().join(SINGLE), file(&header, 8)).unwrap();
        assert_eq!(open(folder.path()).unwrap().names().collect::<Vec<_>>(), [canonical]);
    }
    let both = r#"{"norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
        "model.norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    std::fs::write(folder.path().join(SINGLE), file(both, 8)).unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().contains("two tensors mean"));
}
