//! Groups of several processes, here threads whose messages go through memory.

use super::*;
use crate::ranks::peers::SILENCE_MAX;
use crate::ranks::wire::{KvFormat, Work, decode, encode};
use crate::ranks::{Follower, Leader, Offer, Setup, Sums};
use kernels::comm::local::{self, Local};
use kernels::comm::messages::{Channel, Messages};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Messages that wait, by channel.
type Mailbox = Mutex<[VecDeque<(usize, Vec<u8>)>; 2]>;

/// One process's messages.
struct InMemory {
    rank: usize,
    mailboxes: Arc<Vec<Mailbox>>,
    /// Of a process that stands still: it sends nothing.
    is_silent: AtomicBool,
}

impl Messages for InMemory {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.mailboxes.len()
    }

    fn local_size(&self) -> usize {
        self.mailboxes.len()
    }

    fn local_rank(&self) -> usize {
        self.rank
    }

    fn send(&self, to: usize, channel: Channel, bytes: &[u8]) {
        if !self.is_silent.load(Ordering::SeqCst) {
            let mut mailbox = self.mailboxes[to].lock().unwrap();
            mailbox[channel as usize].push_back((self.rank, bytes.to_vec()));
        }
    }

    fn try_receive(&self, channel: Channel) -> Option<(usize, Vec<u8>)> {
        self.mailboxes[self.rank].lock().unwrap()[channel as usize].pop_front()
    }
}

/// A process that follows: what it was told to do, and how it ended.
type Following = JoinHandle<(Setup, Result<(), RankStartError>)>;

fn processes(world_size: usize) -> Vec<(Arc<InMemory>, Local)> {
    let mailboxes: Arc<Vec<Mailbox>> =
        Arc::new((0..world_size).map(|_| Mailbox::default()).collect());
    let messages = |rank| {
        let (mailboxes, is_silent) = (mailboxes.clone(), AtomicBool::new(false));
        Arc::new(InMemory { rank, mailboxes, is_silent })
    };
    (0..world_size).map(messages).zip(local::group(world_size)).collect()
}

fn setup(room: Room) -> Setup {
    let config = config();
    Setup {
        room,
        block_size: config.block_size,
        kv_format: KvFormat::of(config.kv_dtype),
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        nccl_id: None,
    }
}

fn room(num_blocks: usize) -> Room {
    Room { num_blocks, max_model_len: 64 }
}

fn offer(num_blocks: usize) -> Offer {
    Offer { room: room(num_blocks), arithmetic: "plain loops".to_string() }
}

/// A process that has room for `num_blocks` and computes with `model`.
fn follow(
    (messages, link): (Arc<InMemory>, Local),
    num_blocks: usize,
    model: impl FnOnce() -> Result<Box<dyn Model>, LoadError> + Send + 'static,
) -> Following {
    std::thread::spawn(move || {
        let follower = Follower::new(messages).unwrap();
        let setup = follower.offer(offer(num_blocks)).unwrap();
        let loaded = follower.load(config(), Sums::Processes(Box::new(link)), model);
        let result = loaded.and_then(|loaded| loaded.serve(num_blocks));
        if let Err(error) = &result {
            follower.fail(error.to_string());
        }
        (setup, result)
    })
}

/// Rank 0 with as many others as there are models.
fn start_group(models: Vec<FakeModel>) -> (Result<RankGroup, RankStartError>, Vec<Following>) {
    let mut processes = processes(1 + models.len());
    let (messages, link) = processes.remove(0);
    let threads = processes.into_iter().zip(models).enumerate();
    let threads = threads
        .map(|(i, (process, model))| follow(process, 9 - i, move || Ok(Box::new(model))))
        .collect();
    let leader = Leader::new(messages).unwrap();
    leader.agree(offer(20), setup).unwrap();
    let model = FakeModel { adds: true, fails: false, ..FakeModel::new() };
    let sums = Sums::Processes(Box::new(link));
    let loaded = LoadedGroup::load_leading(leader, config(), sums, |_, _| Ok(Box::new(model)));
    (loaded.and_then(start_with_least), threads)
}

/// As many blocks as every process has room for.
fn start_with_least(loaded: LoadedGroup) -> Result<RankGroup, RankStartError> {
    let num_blocks = loaded.least_blocks(20)?;
    loaded.start(start_with(num_blocks))
}

fn adding() -> FakeModel {
    FakeModel { adds: true, ..FakeModel::new() }
}

#[test]
fn processes_agree_on_what_the_smallest_has_room_for_and_compute_every_plan() {
    let (group, threads) = start_group(vec![adding(), adding(), adding()]);
    let mut group = group.unwrap();
    for step in 0..20 {
        let output = run(&mut group, step, vec![sampled(0, &[step as u32])]).unwrap();
        let next = TokenId(4 * step as u32 + 1);
        assert_eq!(output.chunks[0].sampled.as_ref().unwrap().token, next);
    }
    drop(group);
    for thread in threads {
        let (told, result) = thread.join().unwrap();
        assert_eq!(told, setup(room(7)));
        result.unwrap();
    }
}

#[test]
fn a_process_that_fails_in_a_step_tells_rank_0_why() {
    let (group, threads) = start_group(vec![adding()]);
    let mut group = group.unwrap();
    let begin = Instant::now();
    let result = run(&mut group, 0, vec![chunk(0, &[ERROR])]);
    let Err(RunnerError::RankFailed { reason, .. }) = &result else { panic!("{result:?}") };
    // In memory rank 0 also sees that the other one has left the sum, and may see that first.
    assert!(
        reason.contains("token 291") || reason.contains("rank 1 has left the group"),
        "{reason}"
    );
    assert!(begin.elapsed() < Duration::from_secs(5));
    for thread in threads {
        assert!(matches!(thread.join().unwrap().1, Err(RankStartError::Process(_))));
    }
}

#[test]
fn a_process_that_cannot_load_keeps_the_group_from_starting() {
    let mut processes = processes(2);
    let (messages, link) = processes.remove(0);
    let fails = || Err(LoadError::MissingTensor { name: "w".into() });
    let thread = follow(processes.remove(0), 9, fails);
    let leader = Leader::new(messages).unwrap();
    leader.agree(offer(20), setup).unwrap();
    let sums = Sums::Processes(Box::new(link));
    let loaded =
        LoadedGroup::load_leading(leader, config(), sums, |_, _| Ok(Box::new(FakeModel::new())));
    let error = loaded.and_then(start_with_least).err().unwrap().to_string();
    assert!(error.contains("rank 1") && error.contains('w'), "{error}");
    assert!(matches!(thread.join().unwrap().1, Err(RankStartError::Load(_))));
}

#[test]
fn processes_that_would_not_get_the_same_bits_are_refused() {
    let mut processes = processes(2);
    let (messages, _link) = processes.remove(0);
    let follower = Follower::new(processes[0].0.clone()).unwrap();
    let wait = std::thread::spawn(move || follower.offer(offer(9)));
    let own = Offer { arithmetic: "cpu, Avx2".to_string(), ..offer(9) };
    let leader = Leader::new(messages).unwrap();
    let error = leader.agree(own, setup).unwrap_err().to_string();
    assert!(error.contains("rank 1 computes on plain loops"), "{error}");
    assert!(wait.join().unwrap().is_err());
}

#[test]
fn a_silent_process_is_lost_also_between_steps_and_rank_0_to_the_others_too() {
    let mut processes = processes(3);
    let (messages, _link) = processes.remove(0);
    let silent = processes[1].0.clone();
    let followers: Vec<_> =
        processes.iter().map(|(messages, _)| Follower::new(messages.clone()).unwrap()).collect();
    let waits: Vec<_> = followers
        .into_iter()
        .map(|follower| std::thread::spawn(move || follower.offer(offer(9))))
        .collect();
    let leader = Leader::new(messages).unwrap();
    let (sender, lost) = channel();
    leader.on_loss(move |error| sender.send(error).unwrap());
    std::thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    silent.is_silent.store(true, Ordering::SeqCst);
    let error = lost.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(begin.elapsed() >= SILENCE_MAX - Duration::from_secs(1));
    let RunnerError::RankFailed { rank: 2, reason } = &error else { panic!("{error:?}") };
    assert!(reason.contains("silent"), "{reason}");
    // Rank 0 tells the others, which need not wait for its own silence.
    for wait in waits {
        let told = wait.join().unwrap().unwrap_err();
        let RunnerError::RankFailed { rank: 0, reason } = &told else { panic!("{told:?}") };
        assert!(reason.contains("rank 2 failed"), "{reason}");
    }
}

#[test]
fn plans_survive_their_way_and_other_versions_are_refused() {
    let plan = Plan {
        step: 7,
        chunks: vec![
            sampled(u64::MAX, &[1, 2, 3]),
            Chunk {
                prompt_logprobs: Some(PromptScore { targets: vec![TokenId(2)], top: 5 }),
                ..chunk(3, &[4])
            },
            Chunk { pooling: Some(Pooling::Hidden), ..chunk(4, &[4]) },
            Chunk { pooling: Some(Pooling::logprobs(&[TokenId(2)])), ..chunk(5, &[4]) },
        ],
    };
    let bytes = encode(&Work::Plan(Arc::new(plan.clone())));
    assert!(bytes.len() < 200, "{} bytes", bytes.len());
    let Ok(Work::Plan(read)) = decode(&bytes) else { panic!("another message") };
    assert_eq!(format!("{read:?}"), format!("{plan:?}"));
    assert!(decode::<Work>(&bytes[..bytes.len() - 1]).is_err());
    assert!(decode::<Work>(&[200]).unwrap_err().contains("another version"));
}
