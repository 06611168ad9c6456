//! What tenants get beside each other: turns, places, blocks.

use super::*;
use crate::engine::request::{Tenant, TenantId};

fn of(tenant: u32, request: Request) -> Request {
    weighted(tenant, 1, request)
}

fn weighted(tenant: u32, weight: u32, request: Request) -> Request {
    Request { tenant: Tenant { id: TenantId(tenant), weight, weights: 10 }, ..request }
}

/// Prompts that share nothing.
fn prompt(number: u32, num_tokens: u32) -> std::ops::Range<u32> {
    1000 * number..1000 * number + num_tokens
}

#[test]
fn long_prompts_of_two_tenants_take_turns() {
    let mut bench = Bench::new(config());
    bench.add(of(1, request(prompt(1, 40), 1)));
    bench.add(of(2, request(prompt(2, 40), 1)));
    let steps = [
        vec![(0, 16)],
        vec![(1, 16)],
        vec![(0, 16)],
        vec![(1, 16)],
        // Who comes second gets a part of what is left.
        vec![(0, 8), (1, 4)],
        vec![(1, 4)],
    ];
    assert_eq!(bench.run_to_end(), steps);
}

#[test]
fn tokens_go_by_weight() {
    let mut bench = Bench::new(EngineConfig { num_blocks: 1024, max_model_len: 2000, ..config() });
    bench.add(weighted(1, 1, request(prompt(1, 900), 1)));
    bench.add(weighted(2, 3, request(prompt(2, 900), 1)));
    let mut had = [0, 0];
    for _ in 0..40 {
        for (id, num_tokens) in bench.step() {
            had[id as usize] += num_tokens;
        }
    }
    let share = had[1] as f64 / (had[0] + had[1]) as f64;
    assert!((0.7..=0.8).contains(&share), "{had:?}");
}

#[test]
fn a_short_request_goes_before_the_rest_of_anothers_long_prompt() {
    let mut bench = Bench::new(config());
    let long = bench.add(of(1, request(prompt(1, 200), 1)));
    assert_eq!(bench.step(), [(long, 16)]);
    let short = bench.add(of(2, request(prompt(2, 20), 3)));
    assert_eq!(bench.step(), [(short, 16)]);
    assert_eq!(bench.step(), [(short, 4), (long, 4)]);
    assert_eq!(bench.step(), [(short, 1), (long, 4)]);
    assert_eq!(bench.step(), [(short, 1), (long, 4)]);
    // The next request may come any moment, and will wait for no more than this.
    assert_eq!(bench.step(), [(long, 4)]);
    let later = bench.start + Duration::from_secs(1000) + crate::engine::policy::fair::RECENT;
    let plan = bench.scheduler.schedule(later).expect("work");
    assert_eq!(chunks_of(&plan), [(long, 16)]);
}

#[test]
fn a_thousand_waiting_requests_of_one_tenant_delay_no_other() {
    let mut bench = Bench::new(config());
    for number in 0..1000 {
        bench.add(of(1, request(prompt(number, 8), 4)));
    }
    for _ in 0..20 {
        bench.step();
    }
    let other = bench.add(of(2, request(prompt(2000, 8), 1)));
    bench.step();
    assert_eq!(bench.num_tokens(other), 1, "the next step is its own");
}

#[test]
fn whoever_holds_too_many_places_makes_way_up_to_a_fair_share() {
    let mut bench = Bench::new(config());
    for number in 0..6 {
        bench.add(of(1, request(prompt(number, 2), 20)));
    }
    assert_eq!(bench.step().len(), 4);
    // Two of the four places are theirs.
    for number in 10..14 {
        bench.add(of(2, request(prompt(number, 2), 20)));
    }
    bench.step();
    let ids: Vec<u64> = bench.step().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [6, 7, 0, 1], "whose share is full takes no more");
    assert_eq!(bench.scheduler.stats().preemptions, 2);
    bench.run_to_end();
    assert!((0..10).all(|id| bench.num_tokens(id) == 20));
}

#[test]
fn places_go_by_weight() {
    let mut bench = Bench::new(config());
    for number in 0..6 {
        bench.add(weighted(1, 1, request(prompt(number, 2), 20)));
        bench.add(weighted(2, 3, request(prompt(100 + number, 2), 20)));
    }
    for _ in 0..4 {
        bench.step();
    }
    let of_second = bench.step().iter().filter(|(id, _)| id % 2 == 1).count();
    assert_eq!(of_second, 3);
}

#[test]
fn whoever_holds_too_many_blocks_makes_way() {
    let mut bench = Bench::new(EngineConfig {
        num_blocks: 16,
        prefix_caching: PrefixCaching::Disabled,
        ..config()
    });
    bench.add(of(1, request(prompt(1, 23), 9)));
    bench.add(of(1, request(prompt(2, 23), 9)));
    while bench.num_tokens(1) == 0 {
        bench.step();
    }
    // Five of 16 blocks, of which there are not so many.
    let other = bench.add(of(2, request(prompt(3, 20), 2)));
    bench.step();
    assert_eq!(bench.scheduler.stats().preemptions, 1);
    while bench.num_tokens(other) == 0 {
        assert!(bench.step().iter().all(|(id, _)| *id != 1), "it waits for its turn");
    }
    bench.run_to_end();
    assert_eq!([0, 1, other].map(|id| bench.num_tokens(id)), [9, 9, 2]);
}

#[test]
fn who_wants_more_than_a_share_pushes_nobody() {
    let mut bench = Bench::new(EngineConfig { num_blocks: 16, ..config() });
    bench.add(of(1, request(prompt(1, 39), 3)));
    while bench.num_tokens(0) == 0 {
        bench.step();
    }
    // It needs nine of 16 blocks; eight are theirs.
    let large = bench.add(of(2, request(prompt(2, 36), 1)));
    bench.run_to_end();
    assert_eq!((bench.scheduler.stats().preemptions, bench.num_tokens(large)), (0, 1));
}

#[test]
fn who_lacks_blocks_is_passed_by_other_tenants_for_a_while_only() {
    let mut bench = Bench::new(EngineConfig { num_blocks: 128, max_model_len: 600, ..config() });
    bench.add(of(1, request(prompt(1, 400), 100)));
    while bench.num_tokens(0) == 0 {
        bench.step();
    }
    // More than their share of 42 blocks.
    let large = bench.add(of(2, request(prompt(2, 200), 1)));
    let mut num_passed = 0;
    for number in 0..200 {
        let small = bench.add(of(3, request(prompt(10 + number, 2), 1)));
        bench.step();
        num_passed += usize::from(bench.num_tokens(small) == 1);
        if bench.num_tokens(0) == 100 {
            break;
        }
    }
    assert_eq!(bench.num_tokens(large), 0, "the blocks were not there");
    assert_eq!(num_passed, admission::PASSES_MAX as usize);
    while bench.num_tokens(large) == 0 {
        bench.step();
    }
    bench.run_to_end();
}

#[test]
fn the_policy_orders_the_requests_of_a_tenant() {
    let mut bench =
        Bench::new(EngineConfig { max_num_seqs: 1, policy: PolicyKind::Priority, ..config() });
    for (number, tenant, priority) in [(0, 1, 5), (1, 1, 0), (2, 2, 9), (3, 2, 3)] {
        bench.add(of(tenant, Request { priority, ..request(prompt(number, 4), 1) }));
    }
    let order: Vec<u64> = bench.run_to_end().iter().map(|step| step[0].0).collect();
    assert_eq!(order, [1, 3, 0, 2], "an urgent request goes before its tenant's others only");
}

#[test]
fn results_find_their_sequences_when_turns_have_changed_since() {
    let mut bench = Bench::new(config());
    bench.add(of(1, request(prompt(1, 3), 6)));
    bench.add(of(2, request(prompt(2, 2), 6)));
    let first = bench.schedule().expect("a plan");
    // The second tenant has had less now and stands first.
    let ahead = bench.schedule().expect("a plan");
    assert_eq!(chunks_of(&first), [(0, 3), (1, 2)]);
    assert_eq!(chunks_of(&ahead), [(1, 1), (0, 1)]);
    bench.commit(first);
    bench.commit(ahead);
    assert_eq!([0, 1].map(|id| bench.num_tokens(id)), [2, 2]);
    bench.run_to_end();
}
