//! What the processes of a group say to each other, as bytes.

use crate::engine::Plan;
use crate::engine::plan::shared;
use kernels::DType;
use kernels::comm::nccl::NcclId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// From rank 0 to every other rank, in this order: Setup, Start, Plan..., End.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Work {
    Setup(Setup),
    Start(Start),
    Plan(#[serde(with = "shared")] Arc<Plan>),
    /// No more plans will come.
    End,
}

/// What all ranks must load alike, as rank 0 decided it from what each has planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The smallest plan. On GPUs the cache may get more or fewer blocks (`Start`), sequences no
    /// more tokens.
    pub room: Room,
    pub block_size: usize,
    pub kv_format: KvFormat,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    /// By which the GPUs of the ranks find each other, if they compute on GPUs.
    #[serde(with = "as_bytes")]
    pub nccl_id: Option<NcclId>,
}

/// The number format of keys and values in host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvFormat {
    F32,
    F16,
    Bf16,
}

impl KvFormat {
    /// That of `dtype`; of GPUs, which choose for themselves, it means nothing.
    pub fn of(dtype: DType) -> KvFormat {
        match dtype {
            DType::F16 => KvFormat::F16,
            DType::BF16 => KvFormat::Bf16,
            _ => KvFormat::F32,
        }
    }

    pub fn dtype(self) -> DType {
        match self {
            KvFormat::F32 => DType::F32,
            KvFormat::F16 => DType::F16,
            KvFormat::Bf16 => DType::BF16,
        }
    }
}

/// What all ranks start with, as rank 0 decided it when all had loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Of the rank that has least.
    pub room: Room,
    /// Token ids from here on are padding of the embedding and never sampled.
    pub sampleable_vocab: usize,
}

/// What a rank brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub room: Room,
    /// What it computes with, such as "cpu, Avx2". Ranks may choose tokens each for itself, so
    /// they must get the same bits.
    pub arithmetic: String,
}

/// What a rank has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Most tokens of a sequence.
    pub max_model_len: usize,
}

impl Room {
    /// What both have.
    pub fn smaller(self, other: Room) -> Room {
        Room {
            num_blocks: self.num_blocks.min(other.num_blocks),
            max_model_len: self.max_model_len.min(other.max_model_len),
        }
    }
}

/// Signs of life, several a second, between rank 0 and every other rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Sign {
    Alive {
        progress: u64,
    },
    Offer(Offer),
    /// The model is loaded, and so many blocks of the KV cache have room beside it.
    Loaded {
        num_blocks: usize,
    },
    /// Plans may come.
    Ready,
    /// The sender's last word.
    Failed {
        reason: String,
    },
}

/// An id travels as its bytes.
mod as_bytes {
    use super::NcclId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(id: &Option<NcclId>, to: S) -> Result<S::Ok, S::Error> {
        id.as_ref().map(|id| &id.0[..]).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<NcclId>, D::Error> {
        let bytes = Option::<Vec<u8>>::deserialize(from)?;
        let id = |bytes: Vec<u8>| bytes.try_into().map(NcclId);
        bytes.map(id).transpose().map_err(|_| D::Error::custom("an id of another length"))
    }
}

pub(super) fn encode(message: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(message).expect("plain data can be written")
}

/// Errors: bytes of another version of the program.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    postcard::from_bytes(bytes)
        .map_err(|error| format!("a message of another version of this program: {error}"))
}
