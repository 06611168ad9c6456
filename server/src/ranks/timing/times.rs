//! How long a described GPU takes for a step.

use crate::engine::{Chunk, Plan};
use serde::Deserialize;
use std::time::Duration;

/// Longest time that a table may name, in microseconds: what takes longer counts as a hang.
const MICROS_MAX: f64 = 5e6;
const POINTS_MAX: usize = 256;

/// A step takes the time for its sequences that decode, plus that for its tokens of prompts, plus
/// that for the context of those sequences.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuTimes {
    name: String,
    decode: Table,
    prompt: Table,
    context: f64,
    answer_tokens: Option<usize>,
}

/// As it stands in the file; times in microseconds.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    name: String,
    /// [sequences, time] of steps that decode so many.
    #[serde(default)]
    decode: Vec<[f64; 2]>,
    /// [tokens, time] that so many tokens of prompts add.
    #[serde(default)]
    prompt: Vec<[f64; 2]>,
    /// What each token adds that the decoded ones attend to.
    #[serde(default)]
    context: f64,
    /// Tokens after which an answer ends by itself, if it may.
    answer_tokens: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuTimesError {
    #[error("{0}")]
    Toml(String),
    #[error("{table}: {reason}")]
    Table { table: &'static str, reason: String },
}

impl GpuTimes {
    /// A device that takes no time.
    pub fn zero() -> GpuTimes {
        GpuTimes { name: "no time".into(), ..GpuTimes::default() }
    }

    /// Errors: what is wrong in the file.
    pub fn parse(toml: &str) -> Result<GpuTimes, GpuTimesError> {
        let written: Written = toml::from_str(toml)
            .map_err(|error| GpuTimesError::Toml(error.message().to_string()))?;
        let is_time = |micros: f64| (0.0..=MICROS_MAX).contains(&micros);
        if !is_time(written.context) {
            let reason = format!("{} is not in 0..={MICROS_MAX}", written.context);
            return Err(GpuTimesError::Table { table: "context", reason });
        }
        Ok(GpuTimes {
            name: written.name,
            decode: Table::new("decode", written.decode)?,
            prompt: Table::new("prompt", written.prompt)?,
            context: written.context,
            answer_tokens: written.answer_tokens,
        })
    }

    /// What is described.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tokens after which an answer ends by itself; None: it goes on to its limit.
    pub fn answer_tokens(&self) -> Option<usize> {
        self.answer_tokens
    }

    pub fn of_plan(&self, plan: &Plan) -> Duration {
        if self.decode.0.is_empty() && self.prompt.0.is_empty() && self.context == 0.0 {
            return Duration::ZERO;
        }
        let is_decode = |chunk: &&Chunk| chunk.num_tokens() == 1 && chunk.start > 0;
        let decodes = || plan.chunks.iter().filter(is_decode);
        let (num_decodes, context) =
            decodes().fold((0, 0), |(count, sum), chunk| (count + 1, sum + chunk.start + 1));
        let num_prompt_tokens = plan.num_tokens() - num_decodes;
        let micros = self.decode.at(num_decodes as f64)
            + self.prompt.at(num_prompt_tokens as f64)
            + self.context * context as f64;
        Duration::from_secs_f64(micros.min(MICROS_MAX) * 1e-6)
    }
}

/// Points of a function that is 0 at 0, flat before the first, and linear between and beyond them.
#[derive(Debug, Clone, Default, PartialEq)]
struct Table(Vec<[f64; 2]>);

impl Table {
    fn new(table: &'static str, points: Vec<[f64; 2]>) -> Result<Table, GpuTimesError> {
        let error = |reason: String| Err(GpuTimesError::Table { table, reason });
        if points.len() > POINTS_MAX {
            return error(format!("{} points, the limit is {POINTS_MAX}", points.len()));
        }
        for [count, micros] in &points {
            let is_good = (0.0..=1e9).contains(count) && (0.0..=MICROS_MAX).contains(micros);
            if !is_good {
                return error(format!(
                    "[{count}, {micros}] is not a count and 0..={MICROS_MAX} us"
                ));
            }
        }
        if !points.is_sorted_by(|a, b| a[0] < b[0] && a[1] <= b[1]) {
            return error("counts must rise, and times must not fall".into());
        }
        Ok(Table(points))
    }

    fn at(&self, count: f64) -> f64 {
        let points = &self.0;
        let Some(first) = points.first().filter(|_| count > 0.0) else { return 0.0 };
        if points.len() == 1 || count <= first[0] {
            return first[1];
        }
        let next = points.partition_point(|point| point[0] < count).min(points.len() - 1);
        let ([x0, y0], [x1, y1]) = (points[next - 1], points[next]);
        y0 + (y1 - y0) * (count - x0) / (x1 - x0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_linear_between_the_points_of_a_table_and_beyond() {
        let table = Table::new("decode", vec![[4.0, 100.0], [8.0, 200.0], [16.0, 240.0]]).unwrap();
        let expected =
            [(0.0, 0.0), (1.0, 100.0), (4.0, 100.0), (6.0, 150.0), (12.0, 220.0), (32.0, 320.0)];
        for (count, micros) in expected {
            assert_eq!(table.at(count), micros, "{count}");
        }
        let flat = Table::new("decode", vec![[1.0, 50.0]]).unwrap();
        assert_eq!((flat.at(0.0), flat.at(7.0)), (0.0, 50.0));
    }

    #[test]
    fn wrong_tables_are_refused_with_what_is_wrong() {
        for (text, words) in [
            ("decode = [[1, 2]]", "name"),
            ("name = 'x'\ndecode = [[2, 5], [1, 9]]", "decode: counts must rise"),
            ("name = 'x'\nprompt = [[1, 5], [2, 4]]", "prompt: counts must rise"),
            ("name = 'x'\nprompt = [[1, -5]]", "prompt: [1, -5]"),
            ("name = 'x'\ndecode = [[1, 6000000]]", "decode: [1, 6000000]"),
            ("name = 'x'\ncontext = -1", "context: -1"),
            ("name = 'x'\ndecodes = []", "unknown field `decodes`"),
        ] {
            let error = GpuTimes::parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
