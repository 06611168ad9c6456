//! The blocks of one sequence, lent to plans.

use super::prefix_cache::{BlockHash, Parent};
use crate::engine::plan::BlockId;
use std::collections::VecDeque;
use std::sync::Arc;

/// The blocks of one sequence. It is given back with `BlockManager::release`.
#[derive(Debug, Default)]
pub struct BlockTable {
    lent: Lent,
    len: usize,
    /// So many leading blocks are in the prefix cache.
    pub(super) num_cached: usize,
    /// The last of them, once there is one.
    pub(super) cached_tail: Option<Parent>,
    /// Announced blocks that are not computed yet, the next one first.
    pub(super) announced: VecDeque<BlockHash>,
    /// A hash collision ended the chain of cached blocks; the rest stays private.
    pub(super) caching_ended: bool,
}

impl BlockTable {
    pub fn blocks(&self) -> &[BlockId] {
        &self.lent.current
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The blocks as they are now, whatever becomes of the table. Copies nothing.
    pub fn lend(&self) -> Arc<Vec<BlockId>> {
        Arc::clone(&self.lent.current)
    }

    pub(super) fn push(&mut self, block: BlockId) {
        self.len += 1;
        self.lent.make_own().push(block);
    }

    /// Returns the block that was there.
    pub(super) fn replace(&mut self, index: usize, block: BlockId) -> BlockId {
        let earlier = std::mem::replace(&mut self.lent.make_own()[index], block);
        // The former list has the earlier one.
        self.lent.former.take();
        earlier
    }
}

/// A list that plans hold while they are under way. It changes for few of them, so the list before
/// is kept to take its place: by then no plan holds that, and only its end is missing.
#[derive(Debug, Default)]
struct Lent {
    current: Arc<Vec<BlockId>>,
    /// A beginning of `current`.
    former: Option<Arc<Vec<BlockId>>>,
}

impl Lent {
    /// The list to change, which nobody else sees.
    fn make_own(&mut self) -> &mut Vec<BlockId> {
        if Arc::get_mut(&mut self.current).is_none() {
            let former = self.former.take().filter(|former| Arc::strong_count(former) == 1);
            let mut own = former.unwrap_or_default();
            let list = Arc::get_mut(&mut own).expect("nobody else has it");
            list.extend_from_slice(&self.current[list.len()..]);
            self.former = Some(std::mem::replace(&mut self.current, own));
        }
        Arc::get_mut(&mut self.current).expect("nobody else has it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(blocks: &[BlockId]) -> Vec<u32> {
        blocks.iter().map(|block| block.0).collect()
    }

    #[test]
    fn what_was_lent_stays_as_it_was() {
        let mut table = BlockTable::default();
        let mut lent = Vec::new();
        for id in 0..20 {
            table.push(BlockId(id));
            lent.push(table.lend());
            // Two steps are under way at most.
            if id >= 2 {
                let list = std::mem::take(&mut lent[id as usize - 2]);
                assert_eq!(ids(&list), (0..=id - 2).collect::<Vec<_>>());
            }
        }
        assert_eq!(ids(&lent[18]), (0..=18).collect::<Vec<_>>());
        assert_eq!(ids(table.blocks()), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_replaced_block_is_replaced_in_all_later_lists() {
        let mut table = BlockTable::default();
        (0..3).for_each(|id| table.push(BlockId(id)));
        let first = table.lend();
        assert_eq!(table.replace(1, BlockId(9)), BlockId(1));
        drop(table.lend());
        let second = table.lend();
        table.push(BlockId(3));
        let third = table.lend();
        table.push(BlockId(4));
        assert_eq!(ids(&first), [0, 1, 2]);
        assert_eq!((ids(&second), ids(&third)), (vec![0, 9, 2], vec![0, 9, 2, 3]));
        assert_eq!(ids(table.blocks()), [0, 9, 2, 3, 4]);
    }
}
