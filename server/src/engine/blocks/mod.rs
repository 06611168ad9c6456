//! Bookkeeping of cache blocks: who holds which, and which hold a prefix worth keeping. No device
//! memory here.

pub mod block_pool;
pub mod prefix_cache;
pub mod table;

pub use prefix_cache::{BlockHash, HashChain};
pub use table::BlockTable;

use super::plan::BlockId;
use block_pool::BlockPool;
use models::TokenId;
use prefix_cache::{ByHash, CachedBlock, Found, Parent, PrefixCache};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrefixCaching {
    #[default]
    Enabled,
    Disabled,
}

/// What the cache holds of a sequence's beginning.
#[derive(Debug)]
pub enum PrefixHit {
    /// So many blocks, referenced by this table; often none.
    Table(BlockTable),
    /// The next block is being computed by a running sequence. Nothing is referenced.
    BeingComputed,
}

/// Counts of blocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockCounts {
    pub total: usize,
    /// Referenced by nobody, cached or not: all that new sequences may take.
    pub free: usize,
    /// In the prefix cache, referenced or not.
    pub cached: usize,
    /// Cached blocks that were overwritten, since the start.
    pub evicted: u64,
}

pub struct BlockManager {
    block_size: usize,
    caching: PrefixCaching,
    pool: BlockPool,
    cache: PrefixCache,
    /// How many running sequences are computing the block of this hash.
    announced: ByHash<u32>,
    num_evicted: u64,
}

impl BlockManager {
    pub fn new(num_blocks: usize, block_size: usize, caching: PrefixCaching) -> Self {
        assert!(block_size > 0, "a block holds at least one token");
        Self {
            block_size,
            caching,
            pool: BlockPool::new(num_blocks),
            cache: PrefixCache::new(num_blocks),
            announced: ByHash::default(),
            num_evicted: 0,
        }
    }

    pub fn counts(&self) -> BlockCounts {
        BlockCounts {
            total: self.pool.num_blocks(),
            free: self.pool.num_free(),
            cached: self.cache.num_blocks(),
            evicted: self.num_evicted,
        }
    }

    /// Finds the longest cached beginning of `token_ids`, whole blocks only. The caller leaves out
    /// the last token if it needs that token's logits.
    pub fn match_prefix(&mut self, chain: &mut HashChain, token_ids: &[TokenId]) -> PrefixHit {
        let mut table = BlockTable::default();
        if self.caching == PrefixCaching::Disabled {
            return PrefixHit::Table(table);
        }
        let mut parent = Parent::Root(chain.salt());
        let num_full = token_ids.len() / self.block_size;
        let hashes = chain.blocks(token_ids, self.block_size, num_full);
        for (hash, block_tokens) in hashes.iter().zip(token_ids.chunks_exact(self.block_size)) {
            match self.cache.find(hash, parent, block_tokens) {
                Found::Hit(cached) => {
                    table.push(cached.block);
                    parent = cached.as_parent;
                }
                Found::Nothing if self.announced.contains_key(hash) => {
                    return PrefixHit::BeingComputed;
                }
                Found::Nothing | Found::Different => break,
            }
        }
        for block in table.blocks() {
            self.pool.acquire(*block);
        }
        table.num_cached = table.blocks().len();
        table.cached_tail = Some(parent);
        PrefixHit::Table(table)
    }

    /// Blocks that `table` lacks for `num_tokens` tokens in all.
    pub fn num_missing(&self, table: &BlockTable, num_tokens: usize) -> usize {
        let num_blocks = table.len();
        // As a rule there is room, and a product takes less than a division.
        match num_tokens <= num_blocks * self.block_size {
            true => 0,
            false => num_tokens.div_ceil(self.block_size) - num_blocks,
        }
    }

    /// Gives the table blocks for `num_tokens` tokens in all. If there are not enough, nothing
    /// changes.
    #[must_use]
    pub fn try_grow(&mut self, table: &mut BlockTable, num_tokens: usize) -> bool {
        let num_missing = self.num_missing(table, num_tokens);
        if num_missing > self.pool.num_free() {
            return false;
        }
        for _ in 0..num_missing {
            let block = self.pool.allocate().expect("enough are free");
            self.num_evicted += u64::from(self.cache.evict(block));
            table.push(block);
        }
        true
    }

    /// Tells that the holder of this table will now compute all of `token_ids`, so that others wait
    /// for its blocks rather than compute them too.
    pub fn announce(
        &mut self,
        table: &mut BlockTable,
        chain: &mut HashChain,
        token_ids: &[TokenId],
    ) {
        assert!(table.announced.is_empty(), "a table is announced once");
        if self.caching == PrefixCaching::Disabled {
            return;
        }
        let num_full = token_ids.len() / self.block_size;
        let hashes = chain.blocks(token_ids, self.block_size, num_full);
        for hash in &hashes[table.num_cached.min(num_full)..] {
            *self.announced.entry(*hash).or_insert(0) += 1;
            table.announced.push_back(*hash);
        }
    }

    /// Enters the full blocks among the first `num_computed` tokens in the cache. Only a computed
    /// block may be entered: others read it from the next step on.
    pub fn commit(
        &mut self,
        table: &mut BlockTable,
        chain: &mut HashChain,
        token_ids: &[TokenId],
        num_computed: usize,
    ) {
        if self.caching == PrefixCaching::Disabled {
            return;
        }
        let block_size = self.block_size;
        let is_full = |index: usize| (index + 1) * block_size <= num_computed;
        while !table.caching_ended && is_full(table.num_cached) {
            let index = table.num_cached;
            let hash = chain.blocks(token_ids, self.block_size, index + 1)[index];
            let start = index * self.block_size;
            let block_tokens = &token_ids[start..start + self.block_size];
            let parent = table.cached_tail.unwrap_or(Parent::Root(chain.salt()));
            self.withdraw_first(table);
            match self.cache.find(&hash, parent, block_tokens) {
                Found::Nothing => {
                    let block = table.blocks()[index];
                    let cached = self.cache.insert(hash, parent, block_tokens, block);
                    table.enter(cached);
                }
                Found::Hit(cached) => self.replace_by_cached(table, index, cached),
                Found::Different => {
                    table.caching_ended = true;
                    self.withdraw_all(table);
                }
            }
        }
    }

    /// Gives back all blocks of the table.
    pub fn release(&mut self, mut table: BlockTable) {
        self.withdraw_all(&mut table);
        // From the end: of one sequence's blocks the last is reused first, since a cached block is
        // worth nothing without those before it.
        for block in table.blocks().iter().rev() {
            self.release_block(*block);
        }
    }

    /// Asserts that `tables` hold exactly the references counted, and that free + distinct held
    /// blocks = all blocks. For tests: it looks at every block.
    pub fn assert_consistent<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut references = vec![0; self.pool.num_blocks()];
        let mut num_announced = 0;
        for table in tables {
            num_announced += table.announced.len() as u32;
            for block in table.blocks() {
                references[block.0 as usize] += 1;
            }
        }
        let mut num_held = 0;
        for (id, count) in references.iter().enumerate() {
            let counted = self.pool.references(BlockId(id as u32));
            assert_eq!(counted, *count, "block {id}: references counted and held differ");
            num_held += usize::from(*count > 0);
        }
        assert_eq!(self.pool.num_free() + num_held, self.pool.num_blocks(), "free + held = all");
        let announced: u32 = self.announced.values().sum();
        assert_eq!(announced, num_announced, "announced blocks belong to running sequences");
    }

    /// The same contents are cached already: hold that block and free our own copy. So each cached
    /// block's parents are held by whoever holds it, and are never evicted before it.
    fn replace_by_cached(&mut self, table: &mut BlockTable, index: usize, cached: CachedBlock) {
        self.pool.acquire(cached.block);
        let own = table.replace(index, cached.block);
        self.release_block(own);
        table.enter(cached);
    }

    fn release_block(&mut self, block: BlockId) {
        if !self.pool.release(block) {
            return;
        }
        if self.cache.contains_block(block) {
            self.pool.queue_last(block);
        } else {
            self.pool.queue_first(block);
        }
    }

    fn withdraw_first(&mut self, table: &mut BlockTable) {
        let Some(hash) = table.announced.pop_front() else { return };
        let count = self.announced.get_mut(&hash).expect("announced hashes are counted");
        *count -= 1;
        if *count == 0 {
            self.announced.remove(&hash);
        }
    }

    fn withdraw_all(&mut self, table: &mut BlockTable) {
        while !table.announced.is_empty() {
            self.withdraw_first(table);
        }
    }
}

impl BlockTable {
    fn enter(&mut self, cached: CachedBlock) {
        self.num_cached += 1;
        self.cached_tail = Some(cached.as_parent);
    }
}
