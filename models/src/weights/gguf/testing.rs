//! Builds GGUF files for tests, honest ones and others.

/// Name, dimensions fastest first, ggml type, offset, bytes.
pub type Tensor = (String, Vec<u64>, u32, u64, Vec<u8>);

/// Metadata and tensors as they will be written; every field may be made to lie.
#[derive(Clone)]
pub struct Builder {
    pub version: u32,
    pub metadata: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub alignment: usize,
}

impl Builder {
    pub fn new() -> Builder {
        Builder { version: 3, metadata: Vec::new(), tensors: Vec::new(), alignment: 32 }
    }

    pub fn entry(mut self, key: &str, kind: u32, value: Vec<u8>) -> Builder {
        self.metadata.retain(|(other, ..)| other != key);
        self.metadata.push((key.into(), kind, value));
        self
    }

    pub fn without(mut self, key: &str) -> Builder {
        self.metadata.retain(|(other, ..)| other != key);
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Builder {
        self.entry(key, 4, value.to_le_bytes().into())
    }

    pub fn f32(self, key: &str, value: f32) -> Builder {
        self.entry(key, 6, value.to_le_bytes().into())
    }

    pub fn string(self, key: &str, value: &str) -> Builder {
        self.entry(key, 8, string(value))
    }

    pub fn strings(self, key: &str, values: &[&str]) -> Builder {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(string(value)));
        self.entry(key, 9, bytes)
    }

    pub fn integers(self, key: &str, values: &[i32]) -> Builder {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.entry(key, 9, bytes)
    }

    /// Adds a tensor behind the ones before it.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: Vec<u8>) -> Builder {
        let end = self.tensors.last().map_or(0, |t| t.3 as usize + t.4.len());
        let offset = end.next_multiple_of(self.alignment) as u64;
        self.tensors.push((name.into(), dims.into(), kind, offset, bytes));
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            file.extend(string(key));
            file.extend(kind.to_le_bytes());
            file.extend(value);
        }
        for (name, dims, kind, offset, _) in &self.tensors {
            file.extend(string(name));
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend(offset.to_le_bytes());
        }
        let start = file.len().next_multiple_of(self.alignment);
        for (.., offset, bytes) in &self.tensors {
            file.resize(file.len().max(start.saturating_add(*offset as usize)), 0);
            file.extend(bytes);
        }
        file
    }
}

pub fn string(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}

/// The metadata of a small Qwen2 model and the tensors its config is read from.
pub fn tiny_qwen2() -> Builder {
    Builder::new()
        .string("general.architecture", "qwen2")
        .u32("qwen2.block_count", 2)
        .u32("qwen2.context_length", 512)
        .u32("qwen2.embedding_length", 64)
        .u32("qwen2.feed_forward_length", 96)
        .u32("qwen2.attention.head_count", 4)
        .u32("qwen2.attention.head_count_kv", 2)
        .f32("qwen2.rope.freq_base", 1e6)
        .f32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "qwen2")
        .strings("tokenizer.ggml.tokens", &["a", "b", "<|endoftext|>", "<|im_end|>"])
        .strings("tokenizer.ggml.merges", &["a b"])
        .integers("tokenizer.ggml.token_type", &[1, 1, 3, 3])
        .u32("tokenizer.ggml.eos_token_id", 3)
        .tensor("token_embd.weight", &[64, 4], 8, vec![1; 4 * 68])
        .tensor("blk.0.attn_q.bias", &[64], 0, vec![0; 256])
}
