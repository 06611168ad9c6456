//! The engine's own step: schedule, commit and events, without a model and without a clock:
//! `cargo bench -p benches --bench scheduler`. The runner's time is taken out.

use benches::engine::{ANSWER_LEN, BLOCK_SIZE, BLOCKS_MAX, Busy, Load};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use server::engine::Overlap;
use std::time::Duration;

fn bench(criterion: &mut Criterion, group: &str, cases: &[(String, Load)]) {
    let mut group = criterion.benchmark_group(group);
    group.sample_size(20).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    for (name, load) in cases {
        let mut busy = Busy::new(*load);
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|num_steps| busy.run(num_steps));
        });
    }
    group.finish();
}

fn running(criterion: &mut Criterion) {
    let of = |running: usize| (running.to_string(), Load::of(running));
    bench(criterion, "step/running", &[1, 16, 64, 256, 1024, 4096].map(of));
    let plain = |running: usize| {
        (running.to_string(), Load { overlap: Overlap::Disabled, ..Load::of(running) })
    };
    bench(criterion, "step/running, no overlap", &[256, 4096].map(plain));
}

fn blocks(criterion: &mut Criterion) {
    let of = |num_blocks: usize| {
        let context = num_blocks / 256 * BLOCK_SIZE - ANSWER_LEN - BLOCK_SIZE;
        (num_blocks.to_string(), Load { num_blocks, context, ..Load::of(256) })
    };
    bench(criterion, "step/blocks held by 256", &[1 << 14, 1 << 17, BLOCKS_MAX].map(of));
}

fn waiting(criterion: &mut Criterion) {
    let of = |waiting: usize| (waiting.to_string(), Load { waiting, ..Load::of(256) });
    bench(criterion, "step/waiting behind 256", &[0, 1000, 10_000].map(of));
}

fn tenants(criterion: &mut Criterion) {
    let of = |tenants: u32| (tenants.to_string(), Load { tenants, ..Load::of(256) });
    bench(criterion, "step/tenants of 256", &[1, 16, 64].map(of));
}

criterion_group!(benches, running, blocks, waiting, tenants);
criterion_main!(benches);
