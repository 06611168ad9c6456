//! The pages in server/docs/api/ are made from the tables that requests are read by and that
//! /openapi.json is made of. `cargo xtask docs` writes them; here they are compared.

use serde_json::{Map, Value};
use server::http::fields::Field;
use server::http::openapi::document;
use server::http::{HttpConfig, KeyRing, chat_completions, completions, unsupported};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

/// Set: the pages are written.
const WRITES: &str = "MONSOON_WRITE_DOCS";
/// References are followed so deep.
const DEPTH_MAX: usize = 6;
const MADE: &str = "<!-- Made by `cargo xtask docs`; changes are lost. -->\n";

/// Parameters of OpenAI's API for chats, as its reference lists them.
const OPENAI_CHAT: &str = "\
    messages model audio frequency_penalty function_call functions logit_bias logprobs \
    max_completion_tokens max_tokens metadata modalities n parallel_tool_calls prediction \
    presence_penalty prompt_cache_key prompt_cache_retention reasoning_effort response_format \
    safety_identifier seed service_tier stop store stream stream_options temperature tool_choice \
    tools top_logprobs top_p user verbosity web_search_options";
/// The same for completions.
const OPENAI_COMPLETIONS: &str = "\
    prompt model best_of echo frequency_penalty logit_bias logprobs max_tokens n \
    presence_penalty seed stop stream stream_options suffix temperature top_p user";
/// What vLLM 0.32 adds to both.
const VLLM: &str = "\
    use_beam_search top_k min_p repetition_penalty length_penalty stop_token_ids \
    include_stop_str_in_output ignore_eos min_tokens skip_special_tokens \
    spaces_between_special_tokens truncate_prompt_tokens prompt_logprobs allowed_token_ids \
    bad_words add_special_tokens structured_outputs guided_json guided_regex guided_choice \
    guided_grammar guided_decoding_backend guided_whitespace_pattern priority request_id \
    logits_processors return_tokens_as_token_ids return_token_ids cache_salt kv_transfer_params \
    vllm_xargs logprob_token_ids";
const VLLM_CHAT: &str = "\
    echo add_generation_prompt continue_final_message documents chat_template \
    chat_template_kwargs mm_processor_kwargs media_io_kwargs include_reasoning \
    thinking_token_budget";
const VLLM_COMPLETIONS: &str = "\
    prompt_embeds response_format";

/// Parameters that may go unserved without a refusal, since the answer does not depend on them.
const HARMLESS: [(&str, &str); 5] = [
    ("metadata", "labels of stored answers; none are stored"),
    ("prompt_cache_key", "a hint; prefixes are found without it"),
    ("prompt_cache_retention", "a hint; prefixes are kept while there is room"),
    ("safety_identifier", "names an end user"),
    ("request_id", "the header x-request-id does that"),
];

struct Endpoint {
    fields: Vec<&'static Field>,
    refused: Vec<&'static str>,
    known: Vec<(&'static str, &'static str)>,
}

fn endpoints() -> [Endpoint; 2] {
    let known = |lists: [(&'static str, &'static str); 3]| {
        let names = |(origin, list): (&'static str, &'static str)| {
            list.split_whitespace().map(move |name| (name, origin)).collect::<Vec<_>>()
        };
        lists.into_iter().flat_map(names).collect()
    };
    [
        Endpoint {
            fields: chat_completions::fields().collect(),
            refused: unsupported::chat_names(),
            known: known([("OpenAI", OPENAI_CHAT), ("vLLM", VLLM), ("vLLM", VLLM_CHAT)]),
        },
        Endpoint {
            fields: completions::fields().collect(),
            refused: unsupported::completion_names(),
            known: known([
                ("OpenAI", OPENAI_COMPLETIONS),
                ("vLLM", VLLM),
                ("vLLM", VLLM_COMPLETIONS),
            ]),
        },
    ]
}

#[test]
fn every_page_is_as_generated() {
    let dir = root().join("server/docs/api");
    let pages = pages();
    if std::env::var_os(WRITES).is_some() {
        // The folder holds nothing else.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a folder");
        for (name, text) in &pages {
            fs::write(dir.join(name), text).expect("written");
        }
    }
    let entries = fs::read_dir(&dir).expect("the folder of pages; `cargo xtask docs` makes it");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    let mut names: Vec<String> = names.map(|name| name.expect("UTF-8")).collect();
    names.sort();
    let wanted: Vec<&String> = pages.keys().collect();
    assert_eq!(names.iter().collect::<Vec<_>>(), wanted, "run `cargo xtask docs`");
    for (name, text) in &pages {
        let there = fs::read_to_string(dir.join(name)).expect("a page");
        assert!(there == *text, "{name} is not what the code says: run `cargo xtask docs`");
    }
}

/// A parameter that clients know is served, refused by name, or on the list of the harmless ones.
#[test]
fn no_known_parameter_is_ignored_by_mistake() {
    let mut ignored = Vec::new();
    for endpoint in endpoints() {
        for (name, _) in &endpoint.known {
            let is_served = endpoint.fields.iter().any(|field| field.name == *name);
            if !is_served && !endpoint.refused.contains(name) {
                let reason = HARMLESS.iter().find(|(harmless, _)| harmless == name);
                assert!(reason.is_some(), "{name} is ignored: serve it, or refuse it by name");
                ignored.push(*name);
            }
        }
        for field in &endpoint.fields {
            assert!(!endpoint.refused.contains(&field.name), "{} is both", field.name);
        }
    }
    for (name, _) in HARMLESS {
        assert!(ignored.contains(&name), "{name} is not ignored any more");
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// File names and texts.
fn pages() -> BTreeMap<String, String> {
    let config = HttpConfig { keys: KeyRing::new(&["k".into()], &[]), ..HttpConfig::default() };
    let document = document(&config);
    let paths = document["paths"].as_object().expect("paths");
    let mut pages = BTreeMap::new();
    let mut index = format!(
        "{MADE}# The API\n\nOne page for each route. What clients send and what is done with it: \
         [parameters.md](parameters.md).\nThe same for programs: `GET /openapi.json`.\n\n\
         | Route | |\n|---|---|\n"
    );
    for (path, methods) in paths {
        let methods = methods.as_object().expect("methods");
        let name = page_name(path);
        for (method, operation) in methods {
            let summary = operation["summary"].as_str().expect("a summary");
            let method = method.to_uppercase();
            writeln!(index, "| [`{method} {path}`]({name}) | {summary} |").expect("a string");
        }
        let page = page(&document, path, methods);
        assert!(pages.insert(name, page).is_none(), "two routes have one page: {path}");
    }
    pages.insert("README.md".into(), index);
    pages.insert("parameters.md".into(), parameters());
    pages
}

fn page_name(path: &str) -> String {
    let words: Vec<&str> = path.split(['/', '{', '}']).filter(|word| !word.is_empty()).collect();
    match words.is_empty() {
        true => "page.md".into(),
        false => format!("{}.md", words.join("-")),
    }
}

fn page(document: &Value, path: &str, methods: &Map<String, Value>) -> String {
    let mut text = format!("{MADE}# {path}\n");
    for (method, operation) in methods {
        let summary = operation["summary"].as_str().expect("a summary");
        let key = match operation["security"] == serde_json::json!([]) {
            true => "Needs no key.",
            false => "Needs a key where keys are set.",
        };
        let method = method.to_uppercase();
        write!(text, "\n## {method} {path}\n\n{summary}. {key}\n").expect("a string");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let (name, doc) = (&parameter["name"], &parameter["description"]);
            let (name, doc) = (name.as_str().unwrap_or_default(), doc.as_str().unwrap_or_default());
            let place = parameter["in"].as_str().unwrap_or_default();
            write!(text, "\n`{name}` (in the {place}): {doc}\n").expect("a string");
        }
        for (kind, content) in operation["requestBody"]["content"].as_object().into_iter().flatten()
        {
            let schema = follow(document, &content["schema"]);
            write!(text, "\n### Request, `{kind}`\n\n").expect("a string");
            text.push_str(&request(schema));
        }
        text.push_str("\n### Answers\n\n| Status | | |\n|---|---|---|\n");
        let responses = operation["responses"].as_object().into_iter().flatten();
        for (status, response) in responses.collect::<BTreeMap<_, _>>() {
            let doc = response["description"].as_str().unwrap_or_default();
            let kinds = response["content"].as_object().into_iter().flatten();
            let kinds: Vec<String> = kinds
                .map(|(kind, content)| match content["schema"]["$ref"].as_str() {
                    Some(name) => format!("`{kind}`: {}", name.rsplit('/').next().unwrap_or(name)),
                    None => format!("`{kind}`"),
                })
                .collect();
            writeln!(text, "| {status} | {doc} | {} |", kinds.join(", ")).expect("a string");
        }
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        if follow(document, schema)["properties"].is_object() {
            text.push_str("\n### The result\n\n");
            outline(document, schema, 0, &mut text);
        }
    }
    text
}

/// A request's fields, or that they are not listed.
fn request(schema: &Value) -> String {
    let Some(properties) = schema["properties"].as_object() else {
        return "A JSON object in the shape of that API; a wrong field is named in the 400.\n"
            .into();
    };
    let mut text = String::from("| Field | Type | |\n|---|---|---|\n");
    for (name, schema) in properties {
        let doc = schema["description"].as_str().unwrap_or_default();
        let kind = kind(schema);
        writeln!(text, "| `{name}` | {kind} | {} |", cell(doc)).expect("a string");
    }
    text
}

/// What a value may be, in a few words.
fn kind(schema: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(name) = schema["$ref"].as_str() {
        return name.rsplit('/').next().unwrap_or(name).to_owned();
    }
    if let Some(value) = schema.get("const") {
        return format!("`{value}`");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(" or ");
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(kinds) = schema[key].as_array() {
            return kinds.iter().map(kind).filter(|k| k != "null").collect::<Vec<_>>().join(" or ");
        }
    }
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(word).filter(|kind| kind != "null").collect(),
        one => vec![word(one)],
    };
    let mut text = kinds.join(" or ");
    if schema["items"].is_object() {
        write!(text, " of {}", kind(&schema["items"])).expect("a string");
    }
    let limits = [
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("minLength", "from length"),
        ("maxLength", "to length"),
        ("minItems", "from"),
        ("maxItems", "to"),
    ];
    for (key, says) in limits {
        // Numbers at the end of their type are no limit that a client meets.
        if let Some(limit) = schema.get(key).filter(|limit| {
            limit.as_i64().is_none_or(|limit| limit != i64::MAX && limit != i64::MIN)
        }) {
            write!(text, " {says} {limit}").expect("a string");
        }
    }
    text
}

/// The properties of a result as a nested list.
fn outline(document: &Value, schema: &Value, depth: usize, text: &mut String) {
    let schema = follow(document, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let indent = "  ".repeat(depth);
        let required = schema["required"].as_array();
        let is_certain = required.is_some_and(|names| names.iter().any(|n| n == name));
        let certain = if is_certain { "" } else { ", not always" };
        let may_be_null =
            property["type"].as_array().is_some_and(|t| t.iter().any(|t| t == "null"));
        let null = if may_be_null { " or null" } else { "" };
        writeln!(text, "{indent}- `{name}`: {}{null}{certain}", kind(property)).expect("a string");
        if depth < DEPTH_MAX {
            let items = &property["items"];
            let inner = if items.is_object() { items } else { property };
            outline(document, inner, depth + 1, text);
        }
    }
}

fn follow<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema["$ref"].as_str().and_then(|name| name.strip_prefix('#'));
    target.map_or(schema, |target| document.pointer(target).expect("a reference leads somewhere"))
}

/// Text in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn parameters() -> String {
    let endpoints = endpoints();
    let mut names = BTreeMap::new();
    for endpoint in &endpoints {
        for (name, origin) in &endpoint.known {
            names.entry(*name).or_insert(*origin);
        }
    }
    for endpoint in &endpoints {
        let own = endpoint.fields.iter().map(|field| field.name);
        for name in own.chain(endpoint.refused.iter().copied()) {
            names.entry(name).or_insert("others");
        }
    }
    let mut text = format!(
        "{MADE}# Parameters of chats and completions\n\n\
         Every parameter of OpenAI's API and of vLLM's, and those of other servers that Monsoon \
         knows.\n\n\
         - **yes**: served.\n\
         - **accepted**: taken, and without effect on the answer.\n\
         - **refused**: 400 with the parameter's name, unless its value means \"not used\".\n\
         - **ignored**: passes; the header `x-monsoon-ignored-fields` of the answer names it, and \
         `--strict-fields` refuses it. So does every name that is not in the table.\n\n\
         | Parameter | Of | Chats | Completions | |\n|---|---|---|---|---|\n"
    );
    for (name, origin) in names {
        let [chat, completion] = endpoints.each_ref().map(|endpoint| status(endpoint, name));
        let field = endpoints.iter().flat_map(|e| &e.fields).find(|field| field.name == name);
        let harmless = HARMLESS.iter().find(|(harmless, _)| *harmless == name);
        let doc = field.map(|f| f.doc).or(harmless.map(|(_, doc)| *doc)).unwrap_or_default();
        let doc = cell(doc);
        writeln!(text, "| `{name}` | {origin} | {chat} | {completion} | {doc} |")
            .expect("a string");
    }
    text
}

fn status(endpoint: &Endpoint, name: &str) -> &'static str {
    match endpoint.fields.iter().find(|field| field.name == name) {
        Some(field) if field.doc.starts_with("Accepted and not used") => "accepted",
        Some(_) => "yes",
        None if endpoint.refused.contains(&name) => "refused",
        None => "ignored",
    }
}
