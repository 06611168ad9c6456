//! Holds the layout of the house and the parts of its style that a program can check. Each rule is
//! a function that returns what breaks it; `rules_find_what_they_are_for` shows each of them a
//! planted breach.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::Visit;

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 500;
const COLUMNS_MAX: usize = 100;
const TOP_LEVEL: [&str; 13] = [
    "Cargo.toml",
    "Cargo.lock",
    "rustfmt.toml",
    "server",
    "models",
    "kernels",
    "benches",
    "scripts",
    "tests",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
];

/// One Rust file: its path from the repository's root and its text.
struct Source {
    path: String,
    text: String,
}

type Rule = fn(&Source) -> Vec<String>;
const RULES: [(&str, Rule); 9] = [
    ("columns", columns),
    ("file length", file_length),
    ("function length", function_length),
    ("no bool parameters", bool_parameters),
    ("unsafe has its places", unsafe_places),
    ("SAFETY notes", safety_notes),
    ("arrows", arrows),
    ("anyhow has its places", anyhow_places),
    ("words", words),
];

#[test]
fn every_file_keeps_the_rules() {
    let sources = rust_sources();
    assert!(sources.len() > 30, "found only {} files", sources.len());
    let mut breaches = Vec::new();
    for source in &sources {
        for (name, rule) in RULES {
            breaches
                .extend(rule(source).into_iter().map(|b| format!("{}: {name}: {b}", source.path)));
        }
    }
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn the_top_level_is_as_agreed() {
    let tracked = git(&["ls-files", "--cached", "--others", "--exclude-standard"]);
    let top: BTreeSet<&str> = tracked.lines().filter_map(|l| l.split('/').next()).collect();
    let strange: Vec<_> =
        top.iter().filter(|e| !e.starts_with('.') && !TOP_LEVEL.contains(e)).collect();
    let missing: Vec<_> = TOP_LEVEL.iter().filter(|e| !top.contains(*e)).collect();
    assert!(strange.is_empty() && missing.is_empty(), "strange {strange:?}, missing {missing:?}");
}

#[test]
fn crates_depend_downwards_only() {
    let forbidden = [
        ("kernels", vec!["models", "server", "tests", "benches", "scripts", "candle"]),
        ("models", vec!["server", "tests", "benches", "scripts", "candle"]),
        ("server", vec!["tests", "benches", "scripts", "candle"]),
    ];
    for (name, others) in forbidden {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("manifest");
        for other in others {
            let found = manifest.lines().any(|l| l.starts_with(other));
            assert!(!found, "{name} must not depend on {other}");
        }
    }
}

#[test]
fn every_dependency_says_what_it_saves_us() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("manifest");
    let after = manifest.split("[workspace.dependencies]").nth(1).expect("the dependencies");
    let section = after.split("\n[").next().expect("their end");
    for line in section.lines().filter(|l| l.contains('=') && !l.contains("path =")) {
        assert!(line.contains('#'), "no reason given: {line}");
    }
    for name in ["kernels", "models", "server", "benches", "scripts", "tests"] {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("manifest");
        let own: Vec<_> = manifest.lines().filter(|l| l.contains("version = ")).collect();
        assert!(own.is_empty(), "{name} sets versions of its own: {own:?}");
    }
}

#[test]
fn every_op_has_the_same_files() {
    for entry in fs::read_dir(root().join("kernels/src/ops")).expect("ops") {
        let dir = entry.expect("entry").path();
        if dir.is_dir() {
            for file in ["mod.rs", "reference.rs", "tests.rs"] {
                assert!(dir.join(file).is_file(), "{} lacks {file}", dir.display());
            }
        }
    }
}

#[test]
fn rules_find_what_they_are_for() {
    let long_function = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(FUNCTION_LINES_MAX));
    let planted = [
        ("columns", "server/src/a.rs", format!("// {}", "x".repeat(COLUMNS_MAX))),
        ("file length", "server/src/a.rs", "\n".repeat(FILE_LINES_MAX + 1)),
        ("function length", "server/src/a.rs", long_function),
        ("no bool parameters", "server/src/a.rs", "pub fn f(on: bool) {}".into()),
        ("unsafe has its places", "server/src/a.rs", "fn f() { unsafe { g() } }".into()),
        ("SAFETY notes", "kernels/src/device/a.rs", "fn f() { unsafe { g() } }".into()),
        ("arrows", "server/src/engine/a.rs", "use crate::http::x;".into()),
        ("anyhow has its places", "server/src/http/a.rs", "use anyhow::Result;".into()),
        ("words", "server/src/a.rs", ["// TO", "DO later"].concat()),
    ];
    for ((name, rule), (planted_name, path, text)) in RULES.iter().zip(planted) {
        assert_eq!(*name, planted_name);
        assert!(!rule(&Source { path: path.into(), text }).is_empty(), "{name} is blind");
    }
}

fn columns(source: &Source) -> Vec<String> {
    let lines = source.text.lines().enumerate();
    lines
        .filter(|(_, l)| l.chars().count() > COLUMNS_MAX)
        .map(|(i, l)| {
            format!("line {} has {} columns, at most {COLUMNS_MAX}", i + 1, l.chars().count())
        })
        .collect()
}

/// Files of tests do not count, nor does the module of tests at the end of a file.
fn file_length(source: &Source) -> Vec<String> {
    let code = source.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().count();
    let is_test = source.path.starts_with("tests/") || source.path.ends_with("/tests.rs");
    if is_test || source.path.contains("/tests/") || lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![format!("{lines} lines without tests, at most {FILE_LINES_MAX}")]
}

fn function_length(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    each_function(source, &mut |signature, _, lines| {
        if lines > FUNCTION_LINES_MAX {
            found.push(format!(
                "{} has {lines} lines, at most {FUNCTION_LINES_MAX}",
                signature.ident
            ));
        }
    });
    found
}

fn bool_parameters(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    each_function(source, &mut |signature, is_public, _| {
        for input in signature.inputs.iter().filter(|_| is_public) {
            if let syn::FnArg::Typed(arg) = input
                && let syn::Type::Path(path) = &*arg.ty
                && path.path.is_ident("bool")
            {
                found.push(format!(
                    "{} takes a bool: make it two functions or an enum",
                    signature.ident
                ));
            }
        }
    });
    found
}

fn unsafe_places(source: &Source) -> Vec<String> {
    let p = &source.path;
    let in_op = p.starts_with("kernels/src/ops/") && (p.contains("/cpu") || p.contains("/cuda"));
    let allowed = in_op
        || p.starts_with("kernels/src/device/")
        || p == "kernels/src/comm/nccl.rs"
        || p == "kernels/src/comm/gpus.rs"
        || p == "models/src/weights/mmap.rs"
        || p.starts_with("tests/virtual_gpu/");
    let found = unsafe_lines(source);
    if allowed {
        Vec::new()
    } else {
        found.into_iter().map(|l| format!("unsafe in line {l}")).collect()
    }
}

fn safety_notes(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let noted = |line: usize| {
        let above = lines[..line - 1].iter().rev();
        let mut notes = above.take_while(|l| {
            let l = l.trim_start();
            l.starts_with("//") || l.starts_with("#[") || !l.ends_with([';', '}', '{'])
        });
        lines[line - 1].contains("SAFETY:") || notes.any(|l| l.contains("SAFETY:"))
    };
    let found = unsafe_lines(source).into_iter().filter(|&l| !noted(l));
    found.map(|l| format!("the unsafe in line {l} has no SAFETY note")).collect()
}

/// Which folders of `server` a file may name: `http -> text, engine, jobs`, `ranks -> engine`; only
/// main and commands join them.
fn arrows(source: &Source) -> Vec<String> {
    let Some(inside) = source.path.strip_prefix("server/src/") else { return Vec::new() };
    let allowed: &[&str] = match inside.split('/').next().unwrap_or_default() {
        "http" => &["http", "text", "engine", "jobs", "metrics"],
        "jobs" => &["jobs"],
        "ranks" => &["ranks", "engine"],
        "text" => &["text"],
        "engine" => &["engine"],
        "hub" => &["hub"],
        "metrics.rs" => &["metrics", "engine", "jobs"],
        _ => return Vec::new(),
    };
    let rooms = ["http", "text", "engine", "ranks", "jobs", "hub", "commands", "config", "metrics"];
    let mut found = Vec::new();
    for (i, line) in source.text.lines().enumerate() {
        for room in rooms.iter().filter(|r| !allowed.contains(r)) {
            let (path, group) = (format!("crate::{room}"), format!("crate::{{{room}"));
            if line.contains(&path) || line.contains(&group) {
                found.push(format!("line {} names {room}", i + 1));
            }
        }
    }
    found
}

fn anyhow_places(source: &Source) -> Vec<String> {
    let allowed = source.path == "server/src/main.rs" || source.path.starts_with("scripts/");
    if allowed || source.path == "tests/tidy.rs" || !source.text.contains("anyhow::") {
        return Vec::new();
    }
    vec!["anyhow only in server/src/main.rs and scripts".into()]
}

/// Unfinished marks, and traces of the machine a line was written on.
fn words(source: &Source) -> Vec<String> {
    if source.path == "tests/tidy.rs" && source.text.contains("fn words(") {
        return Vec::new();
    }
    let marks =
        ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "#[ignore", "/root/", "/work/"];
    let lines = source.text.lines().enumerate();
    lines
        .flat_map(|(i, l)| {
            let found = marks.iter().filter(move |m| l.contains(**m));
            found.map(move |m| format!("line {} has {m}", i + 1))
        })
        .collect()
}

fn each_function(source: &Source, report: &mut dyn FnMut(&syn::Signature, bool, usize)) {
    struct Walk<'a>(&'a mut dyn FnMut(&syn::Signature, bool, usize));
    impl Walk<'_> {
        fn meet(&mut self, vis: &syn::Visibility, signature: &syn::Signature, body: &syn::Block) {
            let lines = body.span().end().line - signature.span().start().line + 1;
            (self.0)(signature, matches!(vis, syn::Visibility::Public(_)), lines);
        }
    }
    impl<'ast> Visit<'ast> for Walk<'_> {
        fn visit_item_fn(&mut self, f: &'ast syn::ItemFn) {
            self.meet(&f.vis, &f.sig, &f.block);
            syn::visit::visit_item_fn(self, f);
        }
        fn visit_impl_item_fn(&mut self, f: &'ast syn::ImplItemFn) {
            self.meet(&f.vis, &f.sig, &f.block);
            syn::visit::visit_impl_item_fn(self, f);
        }
    }
    Walk(report).visit_file(&parse(source));
}

/// Lines of unsafe blocks and unsafe impls (an `unsafe fn` is a promise asked for, not given).
fn unsafe_lines(source: &Source) -> Vec<usize> {
    struct Walk(Vec<usize>);
    impl<'ast> Visit<'ast> for Walk {
        fn visit_expr_unsafe(&mut self, e: &'ast syn::ExprUnsafe) {
            self.0.push(e.unsafe_token.span.start().line);
            syn::visit::visit_expr_unsafe(self, e);
        }
        fn visit_item_impl(&mut self, i: &'ast syn::ItemImpl) {
            self.0.extend(i.unsafety.map(|u| u.span.start().line));
            syn::visit::visit_item_impl(self, i);
        }
    }
    let mut walk = Walk(Vec::new());
    walk.visit_file(&parse(source));
    walk.0
}

fn parse(source: &Source) -> syn::File {
    syn::parse_file(&source.text).unwrap_or_else(|e| panic!("{}: {e}", source.path))
}

fn rust_sources() -> Vec<Source> {
    let tracked = git(&["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]);
    let read = |path: &str| {
        let text = fs::read_to_string(root().join(path)).ok()?;
        Some(Source { path: path.into(), text })
    };
    tracked.lines().filter_map(read).collect()
}

fn git(args: &[&str]) -> String {
    let output = std::process::Command::new("git").current_dir(root()).args(args).output();
    let output = output.expect("git runs");
    assert!(output.status.success(), "git {args:?} failed");
    String::from_utf8(output.stdout).expect("paths are UTF-8")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
