//! Merges byte pairs: the pair of the lowest rank first, of several the leftmost, until none is
//! left that makes a token.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use models::TokenId;

/// Words up to this many bytes are merged by going through all their pairs each time, which is
/// quicker than keeping these in order while they are few.
const SCANNED_BYTES_MAX: usize = 64;
/// Buffers that grew for longer words are let go after use.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// Two ids and a rank share 63 bits.
const FIELD_BITS: u32 = 21;
/// Of a pair that makes no token; above all ranks.
const NO_RANK: u32 = u32::MAX;
const NO_PLACE: u32 = u32::MAX;
const EMPTY: u64 = u64::MAX;

/// Two tokens that make a third.
#[derive(Debug, Clone, Copy)]
pub struct Merge {
    pub left: TokenId,
    pub right: TokenId,
    pub merged: TokenId,
}

/// All merges of a tokenizer.
pub struct Merges {
    byte_ids: [u32; 256],
    /// Ranks of two bytes, so that most look-ups of a new word stay in a small table.
    byte_ranks: Vec<u32>,
    /// Left id, right id and rank. Open addressing; a power of two long, at most five eighths full.
    slots: Vec<u64>,
    /// What the pair of each rank makes.
    merged: Vec<u32>,
}

/// What merging needs beside the word; kept between words.
#[derive(Default)]
pub struct MergeBuffers {
    ids: Vec<u32>,
    /// Of each token and its right neighbour.
    ranks: Vec<u32>,
    left: Vec<u32>,
    right: Vec<u32>,
    /// Rank and place; outdated where the pair at the place has another rank by now.
    queue: BinaryHeap<Reverse<u64>>,
}

impl Merges {
    /// `merges`: in the order of their ranks; of equal pairs the last holds. `None`: ids or ranks
    /// too large for this table.
    pub fn new(byte_ids: [TokenId; 256], merges: &[Merge]) -> Option<Self> {
        let fits = |id: TokenId| id.0 < 1 << FIELD_BITS;
        let all_fit = |merge: &Merge| [merge.left, merge.right, merge.merged].into_iter().all(fits);
        if merges.len() > 1 << FIELD_BITS || !byte_ids.into_iter().all(fits) {
            return None;
        }
        if !merges.iter().all(all_fit) {
            return None;
        }
        let num_slots = (merges.len() * 8 / 5 + 1).next_power_of_two();
        let merged = merges.iter().map(|merge| merge.merged.0).collect();
        let byte_ids = byte_ids.map(|id| id.0);
        let mut table =
            Self { byte_ids, byte_ranks: Vec::new(), slots: vec![EMPTY; num_slots], merged };
        for (rank, merge) in merges.iter().enumerate() {
            let pair = pair(merge.left.0, merge.right.0);
            let slot = table.slot(pair);
            table.slots[slot] = pair | rank as u64;
        }
        let bytes = || 0..=u8::MAX;
        let pairs = bytes().flat_map(|left| bytes().map(move |right| [left, right]));
        let ids = pairs.map(|pair| pair.map(|byte| byte_ids[byte as usize]));
        table.byte_ranks = ids.map(|[left, right]| table.rank(left, right)).collect();
        Some(table)
    }

    pub fn byte_id(&self, byte: u8) -> TokenId {
        TokenId(self.byte_ids[byte as usize])
    }

    /// Appends the ids of a word's tokens.
    pub fn encode_word(&self, word: &[u8], buffers: &mut MergeBuffers, ids: &mut Vec<TokenId>) {
        if word.len() <= SCANNED_BYTES_MAX {
            return self.merge_scanning(word, ids);
        }
        buffers.ids.clear();
        buffers.ids.extend(word.iter().map(|&byte| self.byte_ids[byte as usize]));
        let byte_rank = |pair: &[u8]| self.byte_ranks[pair[0] as usize * 256 + pair[1] as usize];
        buffers.ranks.clear();
        buffers.ranks.extend(word.windows(2).map(byte_rank));
        self.merge_in_order(buffers);
        ids.extend(buffers.ids.iter().copied().map(TokenId));
        if word.len() > KEPT_BYTES_MAX {
            *buffers = MergeBuffers::default();
        }
    }

    /// Merges in place: a token keeps the place of its first byte, and the places of the rest of
    /// it are dead.
    fn merge_scanning(&self, word: &[u8], out: &mut Vec<TokenId>) {
        let mut ids = [0; SCANNED_BYTES_MAX];
        let mut ranks = [NO_RANK; SCANNED_BYTES_MAX];
        let mut alive = u64::MAX >> (64 - word.len());
        for (id, &byte) in ids.iter_mut().zip(word) {
            *id = self.byte_ids[byte as usize];
        }
        for (rank, pair) in ranks.iter_mut().zip(word.windows(2)) {
            *rank = self.byte_ranks[pair[0] as usize * 256 + pair[1] as usize];
        }
        let ranks = &mut ranks[..word.len()];
        loop {
            let (mut best, mut at) = (NO_RANK, 0);
            for (place, &rank) in ranks.iter().enumerate() {
                if rank < best {
                    (best, at) = (rank, place);
                }
            }
            if best == NO_RANK {
                break;
            }
            let behind = (u64::MAX - 1) << at;
            let gone = (alive & behind).trailing_zeros() as usize;
            ids[at] = self.merged[best as usize];
            (ranks[gone], ranks[at]) = (NO_RANK, NO_RANK);
            alive &= !(1 << gone);
            if alive & behind != 0 {
                let next = (alive & behind).trailing_zeros() as usize;
                ranks[at] = self.rank(ids[at], ids[next]);
            }
            let before = alive & ((1 << at) - 1);
            if before != 0 {
                let before = before.ilog2() as usize;
                ranks[before] = self.rank(ids[before], ids[at]);
            }
        }
        while alive != 0 {
            out.push(TokenId(ids[alive.trailing_zeros() as usize]));
            alive &= alive - 1;
        }
    }

    fn merge_in_order(&self, buffers: &mut MergeBuffers) {
        let MergeBuffers { ids, ranks, left, right, queue } = buffers;
        let num_bytes = ids.len() as u32;
        ranks.push(NO_RANK);
        left.clear();
        left.extend((0..num_bytes).map(|i| i.wrapping_sub(1)));
        right.clear();
        right.extend((1..num_bytes).chain([NO_PLACE]));
        let in_order = |rank: u32, at: u32| Reverse(u64::from(rank) << 32 | u64::from(at));
        let places = (0..num_bytes).zip(&*ranks).filter(|(_, rank)| **rank != NO_RANK);
        let mut entries = std::mem::take(queue).into_vec();
        entries.extend(places.map(|(at, &rank)| in_order(rank, at)));
        *queue = entries.into();
        while let Some(Reverse(next)) = queue.pop() {
            let (rank, at) = ((next >> 32) as u32, next as u32 as usize);
            if ranks[at] != rank {
                continue;
            }
            let gone = right[at] as usize;
            ids[at] = self.merged[rank as usize];
            (ids[gone], ranks[gone]) = (NO_PLACE, NO_RANK);
            let (before, behind) = (left[at], right[gone]);
            (right[at], ranks[at]) = (behind, NO_RANK);
            if behind != NO_PLACE {
                left[behind as usize] = at as u32;
                ranks[at] = self.rank(ids[at], ids[behind as usize]);
            }
            if before != NO_PLACE {
                ranks[before as usize] = self.rank(ids[before as usize], ids[at]);
            }
            for place in [before, at as u32].into_iter().filter(|&place| place != NO_PLACE) {
                if ranks[place as usize] != NO_RANK {
                    queue.push(in_order(ranks[place as usize], place));
                }
            }
        }
        ids.retain(|&id| id != NO_PLACE);
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        match self.slots[self.slot(pair(left, right))] {
            EMPTY => NO_RANK,
            slot => slot as u32 & ((1 << FIELD_BITS) - 1),
        }
    }

    /// Where the pair is, or would be.
    #[inline]
    fn slot(&self, pair: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mixed = pair.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut at = (mixed >> 40) as usize & mask;
        while self.slots[at] != EMPTY && self.slots[at] >> FIELD_BITS != pair >> FIELD_BITS {
            at = (at + 1) & mask;
        }
        at
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << (2 * FIELD_BITS) | u64::from(right) << FIELD_BITS
}
