use super::testing::{Builder, string, tiny_qwen2};
use super::*;
use crate::config;

fn parse(builder: &Builder) -> Result<GgufFile, LoadError> {
    GgufFile::parse(Path::new("x.gguf"), builder.build().into())
}

fn check_refused(builder: &Builder, words: &str) {
    let error = parse(builder).err().expect(words).to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

#[test]
fn tensors_and_metadata_come_out_as_written() {
    for version in [2, 3] {
        let file = parse(&Builder { version, ..tiny_qwen2() }).unwrap();
        let tensor = file.tensor("token_embd.weight").unwrap();
        assert_eq!((tensor.dtype, &tensor.shape[..]), (DType::Q8_0, &[4, 64][..]));
        assert!(tensor.bytes.len() == 4 * 68 && tensor.bytes.iter().all(|&b| b == 1));
        assert_eq!(file.unsigned("qwen2.block_count").unwrap(), Some(2));
        assert_eq!(file.float("qwen2.rope.freq_base").unwrap(), Some(1e6));
        assert_eq!(file.strings("tokenizer.ggml.merges").unwrap().unwrap(), ["a b"]);
        assert_eq!(file.integers("tokenizer.ggml.token_type").unwrap().unwrap(), [1, 1, 3, 3]);
        assert_eq!(file.string("no.such.key").unwrap(), None);
        assert!(file.string("qwen2.block_count").is_err());
        let weights = file.weights().unwrap();
        assert!(weights.contains("model.embed_tokens.weight"));
        assert!(weights.contains("model.layers.0.self_attn.q_proj.bias"));
    }
}

#[test]
fn alignment_of_the_file_is_kept() {
    let mut builder = tiny_qwen2().u32("general.alignment", 64);
    builder.alignment = 64;
    builder.tensors[1].3 = 320;
    assert!(parse(&builder).unwrap().tensor("blk.0.attn_q.bias").is_some());
    builder.tensors[1].3 = 288;
    check_refused(&builder, "not aligned to 64");
    for value in [0, 3, 1 << 20] {
        check_refused(&tiny_qwen2().u32("general.alignment", value), "general.alignment");
    }
}

#[test]
fn other_number_formats_are_refused_by_name() {
    for (kind, name) in [(3, "Q4_1"), (23, "IQ4_XS"), (39, "MXFP4"), (999, "ggml type 999")] {
        let mut builder = tiny_qwen2();
        builder.tensors[0].2 = kind;
        let error = parse(&builder).err().unwrap();
        assert!(matches!(&error, LoadError::Unsupported { key, value, .. }
                if key.contains("token_embd.weight") && value.contains(name)));
    }
}

#[test]
fn tensors_that_lie_are_refused() {
    type Lie = fn(&mut Builder);
    let lies: [(Lie, &str); 10] = [
        (|b| b.tensors[1].0 = "token_embd.weight".into(), "there twice"),
        (|b| b.tensors[1].3 = 0, "share the bytes"),
        (|b| b.tensors[1].3 = 256, "share the bytes"),
        (|b| b.tensors[0].1 = vec![63, 4], "no whole number of Q8_0 blocks"),
        (|b| b.tensors[0].1 = vec![64, u64::MAX / 32], "no whole number"),
        (|b| b.tensors[0].1 = vec![64, 0], "no whole number"),
        (|b| b.tensors[0].1 = vec![64, 1 << 40], "beyond the file's end"),
        (|b| b.tensors[0].1 = vec![], "0 dimensions"),
        (|b| b.tensors[0].1 = vec![1; 5], "5 dimensions"),
        (|b| b.tensors[0].1 = vec![64, 400], "beyond the file's end"),
    ];
    for (lie, words) in lies {
        let mut builder = tiny_qwen2();
        lie(&mut builder);
        check_refused(&builder, words);
    }
    let mut file = tiny_qwen2().build();
    let offset = file.windows(8).position(|w| w == 288u64.to_le_bytes()).unwrap();
    file[offset..offset + 8].copy_from_slice(&(u64::MAX - 31).to_le_bytes());
    let error = GgufFile::parse(Path::new("x"), file.into()).err().unwrap();
    assert!(error.to_string().contains("beyond the file's end"), "{error}");
}

#[test]
fn headers_that_lie_are_refused() {
    check_refused(&Builder { version: 1, ..tiny_qwen2() }, "version 1");
    check_refused(&Builder { version: 3 << 24, ..tiny_qwen2() }, "little endian");
    check_refused(&tiny_qwen2().entry("x", 13, vec![]), "value type 13");
    check_refused(&tiny_qwen2().entry("x", 8, vec![255; 8]), "bytes in a string");
    let array = |kind: u32, len: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        tiny_qwen2().entry("x", 9, bytes)
    };
    check_refused(&array(4, u64::MAX), "the limit is");
    check_refused(&array(8, 1 << 22), "x: ");
    check_refused(&array(12, 1 << 22), "the file ends");
    check_refused(&array(9, 1), "array of values of type 9");
    let mut twice = tiny_qwen2();
    twice.metadata.push(twice.metadata[0].clone());
    check_refused(&twice, "general.architecture is there twice");
    for (at, words) in [(8, "tensors; the limit"), (16, "metadata entries; the limit")] {
        let mut file = tiny_qwen2().build();
        file[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = GgufFile::parse(Path::new("x"), file.into()).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut no_utf8 = tiny_qwen2().build();
    let at = no_utf8.windows(7).position(|w| w == b"general").unwrap();
    no_utf8[at] = 0xff;
    assert!(GgufFile::parse(Path::new("x"), no_utf8.into()).is_err());
    assert_eq!(string("ab"), [2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
}

/// Every cut, every byte changed in several ways: opened or refused, never a panic, and what opens
/// can be read.
#[test]
fn damaged_files_never_panic() {
    let file = tiny_qwen2().build();
    let header_len = file.len() - 4 * 68 - 256;
    let mut opened = 0;
    let mut check = |bytes: Vec<u8>| {
        let Ok(file) = GgufFile::parse(Path::new("x"), bytes.into()) else { return };
        opened += 1;
        let _ = file.weights();
        if let Ok(tokenizer) = config::gguf::parse_tokenizer(&file) {
            let _ = config::gguf::parse_config(&file, &tokenizer);
        }
    };
    for len in 0..file.len() {
        check(file[..len].to_vec());
    }
    for at in 0..header_len {
        for change in [1, 0x7f, 0x80, 0xff] {
            let mut bytes = file.clone();
            bytes[at] ^= change;
            check(bytes);
        }
    }
    for at in (0..header_len - 8).step_by(3) {
        for value in [u64::MAX, 1 << 63, u64::from(u32::MAX), 0] {
            let mut bytes = file.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            check(bytes);
        }
    }
    assert!(opened > 100, "only {opened} damaged files opened: the test no longer reaches far");
}
