//! POST and GET /v1/files, GET and DELETE of one, GET of its content.

use super::auth::Client;
use super::error::{ApiError, RequestError, excerpt};
use super::fields::{Fields, out_of_range};
use super::limits::{FORM_BYTES_MAX, FORM_PARTS_MAX, NAME_BYTES_MAX};
use super::paging::{list, page, parameters};
use super::state::Context;
use super::unknown::IgnoredFields;
use super::wire::random_hex;
use crate::jobs::store::Upload;
use crate::jobs::{FileRecord, Jobs, Owner};
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::TryStreamExt;
use multer::{Field, Multipart};
use serde_json::{Map, Value, json};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Files in a list, as in OpenAI's API.
pub const FILES_PAGE_MAX: usize = 10_000;
/// Seconds that `expires_after` may name, as in OpenAI's API.
pub const EXPIRES_AFTER_MIN: u64 = 3600;
pub const EXPIRES_AFTER_MAX: u64 = 2_592_000;

pub async fn upload(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let jobs = context.jobs()?;
    let boundary = boundary(request.headers())?;
    let (owner, id) = (client.owner(), format!("file-{}", random_hex()));
    let mut form = Form::new(request.into_body(), boundary, context.config.body_timeout);
    let mut asked = Asked::default();
    let mut upload = None;
    while let Some((name, filename)) = form.next_part().await? {
        match name.as_str() {
            "file" if upload.is_some() => return Err(invalid("file", "is there twice").into()),
            "file" => {
                asked.filename = checked_filename(filename)?;
                upload = Some(take_file(jobs, &owner, &id, &mut form).await?);
            }
            _ => asked.read(name, form.text().await?)?,
        }
    }
    let unknown =
        Fields::parse(Value::from(std::mem::take(&mut asked.unknown)).to_string().as_bytes())?;
    let ignored = IgnoredFields::of(&unknown, &[], &context.config)?;
    let missing = |field: &str| RequestError::Missing { field: field.into() };
    match asked.purpose.as_deref() {
        None => return Err(missing("purpose").into()),
        Some("batch") => {}
        Some(other) => return Err(out_of_range("purpose", &json!(other), "batch".into()).into()),
    }
    let expires_after = asked.expires_after()?;
    let upload = upload.ok_or_else(|| missing("file"))?;
    let record = upload.finish(&owner, asked.filename, expires_after).await?;
    Ok(ignored.tell(Json(file_json(&record)).into_response()))
}

pub async fn list_files(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let parameters = parameters(query.as_deref());
    let page = page(&parameters, FILES_PAGE_MAX, FILES_PAGE_MAX)?;
    let purpose = parameters.get("purpose").cloned();
    let (files, has_more) = context.jobs()?.files(&client.owner(), purpose, page).await?;
    Ok(Json(list(files.iter().map(file_json).collect(), has_more.into())))
}

pub async fn get_file(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(file_json(&context.jobs()?.file(&client.owner(), &id).await?)))
}

pub async fn delete_file(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    context.jobs()?.delete_file(&client.owner(), &id).await?;
    Ok(Json(json!({"id": id, "object": "file", "deleted": true})))
}

pub async fn file_content(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (record, stream) = context.jobs()?.content(&client.owner(), &id).await?;
    // A store that fails now breaks the body off, which its length shows.
    let body = Body::from_stream(stream.inspect_err(|error| {
        tracing::warn!(%error, "a file could not be sent to its end");
    }));
    let kind = "application/octet-stream".to_owned();
    let headers =
        [(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, record.bytes.to_string())];
    Ok((headers, body).into_response())
}

fn file_json(file: &FileRecord) -> Value {
    json!({
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": null,
    })
}

/// What the form says beside the file itself.
#[derive(Default)]
struct Asked {
    filename: String,
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
    /// Name to true.
    unknown: Map<String, Value>,
}

impl Asked {
    fn read(&mut self, name: String, value: String) -> Result<(), RequestError> {
        match name.as_str() {
            "purpose" => self.purpose = Some(value),
            "expires_after[anchor]" => self.anchor = Some(value),
            "expires_after[seconds]" => self.seconds = Some(value),
            _ => drop(self.unknown.insert(name, true.into())),
        }
        Ok(())
    }

    fn expires_after(&self) -> Result<Option<u64>, RequestError> {
        let Some(seconds) = &self.seconds else {
            return match &self.anchor {
                None => Ok(None),
                Some(_) => Err(RequestError::Missing { field: "expires_after[seconds]".into() }),
            };
        };
        check_anchor("expires_after[anchor]", self.anchor.as_deref())?;
        let number = seconds.parse::<u64>().ok();
        let good = number.filter(|n| (EXPIRES_AFTER_MIN..=EXPIRES_AFTER_MAX).contains(n));
        good.map(Some).ok_or_else(|| {
            let range = format!("an integer from {EXPIRES_AFTER_MIN} to {EXPIRES_AFTER_MAX}");
            out_of_range("expires_after[seconds]", &json!(seconds), range)
        })
    }
}

/// Errors: time is counted from something else than the making of the file.
pub fn check_anchor(field: &str, anchor: Option<&str>) -> Result<(), RequestError> {
    match anchor {
        Some("created_at") => Ok(()),
        None => Err(RequestError::Missing { field: field.into() }),
        Some(other) => Err(out_of_range(field, &json!(excerpt(other)), "created_at".into())),
    }
}

fn checked_filename(filename: Option<String>) -> Result<String, RequestError> {
    let name = filename.unwrap_or_default();
    if name.len() > NAME_BYTES_MAX {
        let reason = format!("its filename has {} bytes, at most {NAME_BYTES_MAX}", name.len());
        return Err(invalid("file", &reason));
    }
    Ok(name)
}

async fn take_file(
    jobs: &Jobs,
    owner: &Owner,
    id: &str,
    form: &mut Form,
) -> Result<Upload, ApiError> {
    let mut upload = match jobs.begin_upload(owner, id).await {
        Ok(upload) => upload,
        Err(error) => {
            form.discard().await;
            return Err(error.into());
        }
    };
    while let Some(bytes) = form.chunk().await? {
        if let Err(error) = upload.write(bytes).await {
            form.discard().await;
            return Err(error.into());
        }
    }
    Ok(upload)
}

/// A multipart form read piece by piece, each within the time for a body.
struct Form {
    multipart: Multipart<'static>,
    part: Option<Field<'static>>,
    num_parts: usize,
    /// Bytes that arrived and were not taken out: they are in memory.
    unread: Arc<AtomicUsize>,
    timeout: Duration,
}

impl Form {
    fn new(body: Body, boundary: String, timeout: Duration) -> Form {
        let unread = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unread);
        let pieces =
            body.into_data_stream().map_err(std::io::Error::other).and_then(move |piece| {
                let before = counter.fetch_add(piece.len(), Ordering::Relaxed);
                // The head of a part may not be endless.
                let is_good = before + piece.len() <= FORM_BYTES_MAX;
                let piece = is_good.then_some(piece).ok_or_else(|| std::io::Error::other(TOO_MUCH));
                std::future::ready(piece)
            });
        let multipart = Multipart::new(pieces, boundary);
        Form { multipart, part: None, num_parts: 0, unread, timeout }
    }

    /// Its name, and that of the file in it.
    async fn next_part(&mut self) -> Result<Option<(String, Option<String>)>, RequestError> {
        self.part = None;
        let part = within(self.timeout, self.multipart.next_field()).await?;
        let Some(part) = part else { return Ok(None) };
        self.num_parts += 1;
        if self.num_parts > FORM_PARTS_MAX {
            return Err(RequestError::Form { reason: format!("more than {FORM_PARTS_MAX} parts") });
        }
        let name = part.name().unwrap_or_default().to_owned();
        let filename = part.file_name().map(str::to_owned);
        self.part = Some(part);
        Ok(Some((name, filename)))
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, RequestError> {
        let Some(part) = &mut self.part else { return Ok(None) };
        let chunk = within(self.timeout, part.chunk()).await?;
        let taken = chunk.as_ref().map_or(0, Bytes::len);
        let subtract = |unread: usize| Some(unread.saturating_sub(taken));
        let _ = self.unread.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        Ok(chunk)
    }

    async fn text(&mut self) -> Result<String, RequestError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > NAME_BYTES_MAX {
                let reason = format!("a part has more than {NAME_BYTES_MAX} bytes");
                return Err(RequestError::Form { reason });
            }
        }
        String::from_utf8(bytes)
            .map_err(|_| RequestError::Form { reason: "a part is no UTF-8 text".into() })
    }

    /// As with other bodies: a client that is still sending is to see the answer.
    async fn discard(&mut self) {
        let mut num_bytes = 0;
        while num_bytes < super::limits::DISCARD_BYTES_MAX {
            let chunk = tokio::time::timeout(super::limits::DISCARD_TIMEOUT, self.chunk()).await;
            match chunk {
                Ok(Ok(Some(bytes))) => num_bytes += bytes.len(),
                _ => return,
            }
        }
    }
}

const TOO_MUCH: &str = "a part's head is too long";

async fn within<T>(
    timeout: Duration,
    work: impl Future<Output = multer::Result<T>>,
) -> Result<T, RequestError> {
    let done = tokio::time::timeout(timeout, work).await;
    let done = done.map_err(|_| RequestError::BodyTimeout { seconds: timeout.as_secs() })?;
    done.map_err(|error| match error {
        multer::Error::StreamReadFailed(reason) => {
            RequestError::BodyBroken { reason: reason.to_string() }
        }
        other => RequestError::Form { reason: excerpt(&other.to_string()) },
    })
}

fn boundary(headers: &HeaderMap) -> Result<String, RequestError> {
    let found = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let found = found.unwrap_or_default();
    multer::parse_boundary(found).map_err(|_| RequestError::NoForm { found: excerpt(found) })
}

fn invalid(field: &str, reason: &str) -> RequestError {
    RequestError::Invalid { field: field.into(), reason: reason.into() }
}
