//! From where to where in the text a register is needed.
//!
//! A span reaches from the first statement that names the register to the last one. A register that
//! is needed before a loop and in it is needed to the loop's end; so is one whose first mention in
//! a loop is no plain definition, for it may carry a value around. Every jump backwards counts as a
//! loop. This is coarser than liveness and never too short.

use super::parse::{Function, Operand, Statement};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub first: usize,
    pub last: usize,
}

pub fn spans(function: &Function) -> Vec<Span> {
    let unused = Span { first: usize::MAX, last: 0 };
    let mut spans = vec![unused; function.registers.len()];
    let mut defined_first = vec![false; spans.len()];
    for (at, statement) in function.statements.iter().enumerate() {
        let mut mentioned = Vec::new();
        if let Some((guard, _)) = statement.guard {
            mentioned.push(guard);
        }
        for operand in &statement.operands {
            registers_of(operand, &mut mentioned);
        }
        let defined = definitions(statement);
        for &r in &mentioned {
            let span = &mut spans[r];
            if span.first == usize::MAX {
                span.first = at;
                let mentions = mentioned.iter().filter(|&&m| m == r).count();
                defined_first[r] = mentions == 1 && defined.contains(&r);
            }
            span.last = at;
        }
    }
    let loops = loops(function);
    let mut changed = true;
    while changed {
        changed = false;
        for &(start, end) in &loops {
            for (span, &defined) in spans.iter_mut().zip(&defined_first) {
                if span.first > end || span.last < start {
                    continue;
                }
                let carried = span.first < start || !defined;
                if carried && (span.last < end || span.first > start) {
                    span.last = span.last.max(end);
                    span.first = span.first.min(start);
                    changed = true;
                }
            }
        }
    }
    spans
}

/// Target and place of every jump backwards.
fn loops(function: &Function) -> Vec<(usize, usize)> {
    let mut loops = Vec::new();
    for (at, statement) in function.statements.iter().enumerate() {
        let mut targets = Vec::new();
        for operand in &statement.operands {
            if let Operand::Name(name) = operand {
                targets.push(name);
                targets.extend(function.branch_targets.get(name).into_iter().flatten());
            }
        }
        for target in targets {
            if let Some(&to) = function.labels.get(target)
                && to <= at
            {
                loops.push((to, at));
            }
        }
    }
    loops
}

/// What the statement certainly writes in every lane that reaches it.
fn definitions(statement: &Statement) -> Vec<usize> {
    let mut out = Vec::new();
    let writes_first = !matches!(
        statement.opcode[0].as_str(),
        "st" | "red" | "bar" | "barrier" | "cp" | "stmatrix" | "bra" | "brx"
    );
    if statement.guard.is_none()
        && writes_first
        && let Some(first) = statement.operands.first()
    {
        registers_of(first, &mut out);
    }
    out
}

fn registers_of(operand: &Operand, out: &mut Vec<usize>) {
    match operand {
        Operand::Reg(r) => out.push(*r),
        Operand::Vector(parts) => parts.iter().for_each(|p| registers_of(p, out)),
        Operand::Memory(base, _) => registers_of(base, out),
        Operand::Not(inner) => registers_of(inner, out),
        Operand::Pair(a, b) => {
            registers_of(a, out);
            registers_of(b, out);
        }
        _ => {}
    }
}
