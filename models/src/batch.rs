//! `ForwardBatch`: one step's work as flat arrays.

use kernels::ops::AttentionBatch;

/// Tokens of several sequences, one after the other; `AttentionBatch` says how the starts are to be
/// read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ForwardBatch {
    /// [num_tokens]
    pub token_ids: Vec<u32>,
    /// [num_tokens]: place of each token in its sequence, from 0.
    pub positions: Vec<u32>,
    /// [num_tokens]: where each token's key and value go: block id * block_size + place in block.
    pub slots: Vec<u32>,
    /// [num_seqs + 1]
    pub query_start: Vec<u32>,
    /// [num_seqs]
    pub context_len: Vec<u32>,
    pub block_tables: Vec<u32>,
    /// [num_seqs + 1]
    pub block_table_start: Vec<u32>,
}

impl ForwardBatch {
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Empties all arrays and keeps their memory, ready for `push_sequence`.
    pub fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slots.clear();
        self.context_len.clear();
        self.block_tables.clear();
        for start in [&mut self.query_start, &mut self.block_table_start] {
            start.clear();
            start.push(0);
        }
    }

    /// Adds one sequence's chunk: `token_ids` at positions start, start + 1, ..., whose blocks are
    /// `block_table`.
    pub fn push_sequence(
        &mut self,
        token_ids: impl IntoIterator<Item = u32>,
        start: usize,
        block_table: &[u32],
        block_size: usize,
    ) {
        if self.query_start.is_empty() {
            self.clear();
        }
        for (position, token_id) in (start..).zip(token_ids) {
            let block = block_table[position / block_size] as usize;
            self.token_ids.push(token_id);
            self.positions.push(position as u32);
            self.slots.push((block * block_size + position % block_size) as u32);
        }
        let end = self.token_ids.len() as u32;
        let num_new = end - self.query_start.last().expect("cleared above");
        self.query_start.push(end);
        self.context_len.push(start as u32 + num_new);
        self.block_tables.extend_from_slice(block_table);
        self.block_table_start.push(self.block_tables.len() as u32);
    }

    pub fn attention(&self) -> AttentionBatch<'_> {
        AttentionBatch {
            query_start: &self.query_start,
            context_len: &self.context_len,
            block_tables: &self.block_tables,
            block_table_start: &self.block_table_start,
        }
    }
}
