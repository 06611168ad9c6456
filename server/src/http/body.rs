//! Reads a JSON body within its limits of size and time.

use super::error::{ApiError, RequestError, excerpt};
use super::fields::Fields;
use super::limits::{DISCARD_BYTES_MAX, DISCARD_TIMEOUT};
use super::state::{BodyReservation, Context};
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;

/// The fields of a request's body. The reservation is to be kept until they are turned into tokens.
///
/// Errors: wrong content type or encoding, too long, too slow, broken off, not a JSON object.
pub async fn read_fields(
    context: &Context,
    request: Request,
) -> Result<(Fields, BodyReservation), ApiError> {
    check_headers(request.headers())?;
    let timeout = context.config.body_timeout;
    let mut reservation = context.reserve_body();
    let bytes = tokio::time::timeout(timeout, read_bytes(context, request, &mut reservation))
        .await
        .map_err(|_| RequestError::BodyTimeout { seconds: timeout.as_secs() })??;
    Ok((Fields::parse(&bytes)?, reservation))
}

fn check_headers(headers: &HeaderMap) -> Result<(), RequestError> {
    let text = |name| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    if let Some(found) = text(header::CONTENT_TYPE) {
        let essence = found.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let json = essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"));
        if !json {
            return Err(RequestError::MediaType { found: excerpt(&found) });
        }
    }
    match text(header::CONTENT_ENCODING) {
        Some(found) if !found.eq_ignore_ascii_case("identity") => {
            Err(RequestError::ContentEncoding { found: excerpt(&found) })
        }
        _ => Ok(()),
    }
}

async fn read_bytes(
    context: &Context,
    request: Request,
    reservation: &mut BodyReservation,
) -> Result<Vec<u8>, ApiError> {
    let bytes_max = context.config.body_bytes_max;
    let announced = content_length(request.headers());
    // A client that waits for `100 Continue` has not begun to send, so there is nothing to discard.
    let waits = request.headers().contains_key(header::EXPECT);
    let mut body = request.into_body();
    if announced.is_some_and(|length| length > bytes_max as u64) {
        if !waits {
            discard(&mut body).await;
        }
        return Err(RequestError::BodyTooLarge { bytes_max }.into());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| RequestError::BodyBroken { reason: e.to_string() })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > bytes_max {
            discard(&mut body).await;
            return Err(RequestError::BodyTooLarge { bytes_max }.into());
        }
        reservation.grow(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads on for a little while: were the connection closed on bytes that nobody read, the reset
/// would take the answer with it.
async fn discard(body: &mut Body) {
    let mut num_bytes = 0;
    while num_bytes < DISCARD_BYTES_MAX {
        match tokio::time::timeout(DISCARD_TIMEOUT, body.frame()).await {
            Ok(Some(Ok(frame))) => num_bytes += frame.data_ref().map_or(0, |d| d.len()),
            _ => return,
        }
    }
}
