//! Files and batches.

use super::{error_response, object, post, read, reference, request_schema};
use crate::http::batches;
use crate::http::files::{EXPIRES_AFTER_MAX, EXPIRES_AFTER_MIN, FILES_PAGE_MAX};
use crate::http::limits::HttpConfig;
use crate::jobs::Status;
use serde_json::{Value, json};

/// `None`: no route of this kind.
pub fn operation(method: &str, path: &str) -> Option<Value> {
    let mut operation = match (method, path) {
        ("post", "/v1/files") => upload(),
        ("get", "/v1/files") => {
            let mut operation = read("listFiles", "Files, the newest first", "FileList");
            operation["parameters"] = page_parameters(FILES_PAGE_MAX);
            operation["responses"]["400"] = error_response("A parameter is wrong");
            operation
        }
        ("get", "/v1/files/{id}") => read("getFile", "One file", "File"),
        ("delete", "/v1/files/{id}") => {
            let mut operation = read("deleteFile", "Delete a file", "Deleted");
            operation["responses"]["409"] = error_response("A batch still reads it");
            operation
        }
        ("get", "/v1/files/{id}/content") => {
            let mut operation = read("fileContent", "The bytes of a file", "AnyObject");
            operation["responses"]["200"]["content"] = json!({
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            });
            operation
        }
        ("post", "/v1/batches") => {
            post("createBatch", "Answer a file of requests", "BatchRequest", "Batch")
        }
        ("get", "/v1/batches") => {
            let mut operation = read("listBatches", "Batches, the newest first", "BatchList");
            operation["parameters"] = page_parameters(100);
            operation["responses"]["400"] = error_response("A parameter is wrong");
            operation
        }
        ("get", "/v1/batches/{id}") => read("getBatch", "One batch", "Batch"),
        ("post", "/v1/batches/{id}/cancel") => {
            let mut operation = read("cancelBatch", "Answer no more of a batch's rows", "Batch");
            operation["responses"]["409"] = error_response("It has ended");
            operation
        }
        _ => return None,
    };
    operation["responses"]["501"] = error_response("This server does no batch jobs");
    operation["responses"]["503"] = error_response("The store of files and jobs fails");
    Some(operation)
}

fn upload() -> Value {
    let mut operation = post("uploadFile", "Send a file of requests", "AnyObject", "File");
    let text = json!({"type": "string"});
    operation["requestBody"]["content"] = json!({"multipart/form-data": {"schema": {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary", "description":
                "One JSON object a line: custom_id, method (POST), url (the endpoint), body."},
            "purpose": {"const": "batch"},
            "expires_after[anchor]": {"const": "created_at"},
            "expires_after[seconds]": {
                "type": "integer", "minimum": EXPIRES_AFTER_MIN, "maximum": EXPIRES_AFTER_MAX,
            },
        },
        "additionalProperties": text,
    }}});
    operation["responses"]["415"] = error_response("The body is no form");
    operation["responses"]["429"] = error_response("Too many files, bytes or uploads");
    operation
}

fn page_parameters(limit_max: usize) -> Value {
    let limit = json!({"type": "integer", "minimum": 1, "maximum": limit_max});
    json!([
        parameter("after", json!({"type": "string"}), "The last id of the page before."),
        parameter("limit", limit, "Most entries of the page."),
        parameter("order", json!({"enum": ["asc", "desc"]}), "By when they were made."),
    ])
}

fn parameter(name: &str, schema: Value, doc: &str) -> Value {
    json!({"name": name, "in": "query", "schema": schema, "description": doc})
}

/// By name.
pub fn schemas(config: &HttpConfig) -> Value {
    let text = json!({"type": "string"});
    let integer = json!({"type": "integer"});
    let maybe_text = json!({"type": ["string", "null"]});
    let maybe_time = json!({"type": ["integer", "null"]});
    let file = object(json!({
        "id": text, "object": {"const": "file"}, "bytes": integer, "created_at": integer,
        "expires_at": maybe_time, "filename": text, "purpose": {"enum": ["batch", "batch_output"]},
        "status": {"const": "processed"}, "status_details": {"type": "null"},
    }));
    let fault = object(json!({
        "code": text, "message": text, "param": maybe_text, "line": maybe_time,
    }));
    let counts = object(json!({"total": integer, "completed": integer, "failed": integer}));
    let mut batch = object(json!({
        "id": text, "object": {"const": "batch"}, "endpoint": text, "model": text,
        "errors": {"anyOf": [
            object(json!({
                "object": {"const": "list"}, "data": {"type": "array", "items": fault},
            })),
            {"type": "null"},
        ]},
        "input_file_id": text, "completion_window": text,
        "status": {"enum": Status::ALL.map(Status::name)},
        "output_file_id": maybe_text, "error_file_id": maybe_text,
        "created_at": integer, "expires_at": integer,
        "request_counts": counts,
        "metadata": {"type": ["object", "null"]},
    }));
    for time in ["in_progress", "finalizing", "completed", "failed", "expired", "cancelling"] {
        batch["properties"][format!("{time}_at")] = maybe_time.clone();
    }
    batch["properties"]["cancelled_at"] = maybe_time;
    let required = ["input_file_id", "endpoint", "completion_window"];
    json!({
        "File": file,
        "FileList": list("File"),
        "Deleted": object(json!({
            "id": text, "object": {"const": "file"}, "deleted": {"type": "boolean"},
        })),
        "BatchRequest": request_schema(batches::fields(), &required, config),
        "Batch": batch,
        "BatchList": list("Batch"),
    })
}

fn list(of: &str) -> Value {
    object(json!({
        "object": {"const": "list"},
        "data": {"type": "array", "items": reference(of)},
        "first_id": {"type": ["string", "null"]},
        "last_id": {"type": ["string", "null"]},
        "has_more": {"type": "boolean"},
    }))
}

/// What a path's `{id}` is.
pub fn id_of(path: &str) -> Option<(&'static str, &'static str)> {
    match path {
        _ if path.starts_with("/v1/files/") => Some(("The id of a file.", "No such file")),
        _ if path.starts_with("/v1/batches/") => Some(("The id of a batch.", "No such batch")),
        _ => None,
    }
}
