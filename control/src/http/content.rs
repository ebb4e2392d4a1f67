//! Blobs and trees as HTTP bodies, with ranges, also while they are still arriving.
//!
//! What is not here is pulled; a read waits for its own range and goes out as soon as that has been verified.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use velo_object::{BlobId, Entry, EntryKind, Named, ObjectId, ObjectKind, PIECE_BYTES, Tree};

use super::api::meaning;
use super::range::{Wanted, wanted};
use super::reading::{NEXT_PIECE, Opened, open};
use super::{ApiError, App};
use crate::client::{TreeEntryView, TreeView};
use crate::origin::{MAX_TABLE_BYTES, read};

/// The largest tree that is listed or looked into, in bytes of its table.
const MAX_LISTED_BYTES: u64 = if MAX_TABLE_BYTES < 256 << 20 { MAX_TABLE_BYTES } else { 256 << 20 };

/// What a body is made of.
enum Content {
    /// A blob in the store.
    Stored(Opened),
    /// A small content, read from its pack and checked.
    Small(BlobId, Bytes),
}

fn as_blob(blob: BlobId) -> ObjectId {
    ObjectId { kind: ObjectKind::Blob, blob }
}

async fn object(app: &App, text: &str, kind: ObjectKind) -> Result<ObjectId, ApiError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = match digits {
        false => meaning(app, text).await?,
        true => meaning(app, &format!("{}:{text}", kind.as_str())).await?,
    };
    let id: ObjectId = id.id.parse().map_err(ApiError::invalid)?;
    // A tree's table may be read as the blob that it is, but a blob is no tree.
    if kind == ObjectKind::Tree && id.kind != kind {
        return Err(ApiError::invalid(format!("{id} is a blob: ask for /v1/blobs/")));
    }
    Ok(id)
}

/// Sends what the headers ask for of an opened blob.
fn send(method: &Method, headers: &HeaderMap, content: Content) -> Response {
    let (blob, size) = match &content {
        Content::Stored(opened) => (opened.blob, opened.size),
        Content::Small(blob, bytes) => (*blob, bytes.len() as u64),
    };
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    let etag = format!("\"{}\"", blob.to_hex());
    let same = |list: &str| {
        list.split(',').any(|tag| [etag.as_str(), "*"].contains(&tag.trim().trim_start_matches("W/")))
    };
    let base = [
        (header::ETAG, etag.clone()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        // What an id names never changes.
        (header::CACHE_CONTROL, "private, max-age=31536000, immutable".to_owned()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    if text(header::IF_NONE_MATCH).is_some_and(same) {
        return (StatusCode::NOT_MODIFIED, base).into_response();
    }
    // A range of another version of the content is no range of this one.
    let range = text(header::RANGE).filter(|_| text(header::IF_RANGE).is_none_or(|tag| tag.trim() == etag));
    let (status, bytes) = match wanted(range, size) {
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part(bytes) => (StatusCode::PARTIAL_CONTENT, bytes),
        Wanted::Unsatisfiable => {
            let all = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, all).into_response();
        }
    };
    let mut response = (status, base).into_response();
    let mut set = |name, value: String| {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    };
    set(header::CONTENT_LENGTH, (bytes.end - bytes.start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        set(header::CONTENT_RANGE, format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1));
    }
    if method == Method::HEAD {
        return response;
    }
    *response.body_mut() = match content {
        Content::Stored(opened) => stream(opened, bytes),
        // Both ends are at most the size of a small content.
        Content::Small(_, content) => Body::from(content.slice(bytes.start as usize..bytes.end as usize)),
    };
    response
}

/// A range of a stored blob, piece by piece as they are there.
fn stream(opened: Opened, bytes: Range<u64>) -> Body {
    let opened = Arc::new(opened);
    let chunks = futures_util::stream::try_unfold(bytes.start, move |at| {
        // What brings the rest is kept for as long as the stream is.
        let (opened, end) = (Arc::clone(&opened), bytes.end);
        async move {
            if at >= end {
                return Ok(None);
            }
            // Up to the end of a piece, so that a read waits for no more than it needs.
            let next = end.min((at / PIECE_BYTES + 1) * PIECE_BYTES);
            opened.wait(at..next).await.map_err(io::Error::other)?;
            let (file, offset) = (Arc::clone(&opened.file), opened.offset);
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; usize::try_from(next - at).unwrap_or(0)];
                file.read_exact_at(&mut chunk, offset + at).map(|()| Bytes::from(chunk))
            });
            let chunk = read.await.map_err(io::Error::other)??;
            Ok::<_, io::Error>(Some((chunk, next)))
        }
    });
    Body::from_stream(chunks)
}

pub(super) async fn blob(
    State(app): State<App>,
    method: Method,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(text) = path?;
    let id = object(&app, &text, ObjectKind::Blob).await?;
    let opened = open(&app, id, None).await?;
    Ok(send(&method, &headers, Content::Stored(opened)))
}

/// The table of a tree, which is pulled if it is not here.
async fn table(app: &App, id: ObjectId) -> Result<Tree<Vec<u8>>, ApiError> {
    let opened = open(app, id, None).await?;
    if opened.size > MAX_LISTED_BYTES {
        return Err(ApiError::invalid(format!(
            "the table of {id} has {} bytes: read it as a blob",
            opened.size
        )));
    }
    if !opened.complete {
        opened.wait(0..opened.size).await?;
        // The last piece is verified before the blob is complete as a whole.
        let until = Instant::now() + NEXT_PIECE;
        while !app.control.velod.open(id.blob, true).await?.3 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let bytes = read(&app.control.velod, id.blob, MAX_LISTED_BYTES).await?;
    Tree::parse(bytes).map_err(|error| ApiError::invalid(format!("{id} is no tree: {error}")))
}

pub(super) async fn tree(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<TreeView>, ApiError> {
    let Path(text) = path?;
    let id = object(&app, &text, ObjectKind::Tree).await?;
    let tree = table(&app, id).await?;
    let entries = tree.iter().map(|entry| TreeEntryView {
        path: printable(entry.path),
        kind: match entry.kind {
            EntryKind::File => "file",
            EntryKind::Executable => "executable",
            EntryKind::Symlink => "symlink",
            EntryKind::Directory => "directory",
        }
        .to_owned(),
        size_bytes: entry.size_bytes,
        id: entry.has_content().then(|| entry.blob.to_string()),
    });
    let entries = entries.collect();
    Ok(Json(TreeView { id: id.to_string(), entries }))
}

pub(super) async fn tree_path(
    State(app): State<App>,
    method: Method,
    headers: HeaderMap,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path((text, path)) = path?;
    let id = object(&app, &text, ObjectKind::Tree).await?;
    let tree = table(&app, id).await?;
    let there = |path: &str| ApiError::not_found(format!("{id} has no file at `{path}`"));
    let entry = tree.find(&unprintable(&path)).ok_or_else(|| there(&path))?;
    if !matches!(entry.kind, EntryKind::File | EntryKind::Executable) {
        return Err(ApiError::invalid(format!("`{path}` in {id} is no file")));
    }
    let content = match tree.packed().find(|packed| packed.entry.blob == entry.blob) {
        Some(packed) => {
            let pack = tree.packs().nth(packed.pack).ok_or_else(|| there(&path))?;
            small(&app, id, pack, packed.offset_bytes, entry).await?
        }
        None => Content::Stored(open(&app, as_blob(entry.blob), Some(entry.size_bytes)).await?),
    };
    Ok(send(&method, &headers, content))
}

/// A small content from its pack, of which no more than this needs to have come. It is checked by its own hash: a tree may name any pack.
async fn small(
    app: &App,
    tree: ObjectId,
    pack: Named,
    at: u64,
    entry: Entry<'_>,
) -> Result<Content, ApiError> {
    let opened = open(app, as_blob(pack.blob), Some(pack.size_bytes)).await?;
    let range = at..at.saturating_add(entry.size_bytes);
    let damaged = || {
        ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "mismatch",
            format!("{tree} names a pack that is another"),
        )
    };
    if range.end > opened.size {
        return Err(damaged());
    }
    opened.wait(range).await?;
    let bytes = usize::try_from(entry.size_bytes).unwrap_or(0);
    let read = tokio::task::spawn_blocking(move || {
        let mut content = vec![0; bytes];
        opened.file.read_exact_at(&mut content, opened.offset + at).map(|()| content)
    });
    let content = read.await.map_err(io::Error::other).and_then(|read| read);
    let content = content.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "io", error))?;
    if BlobId::of(&content) != entry.blob {
        return Err(damaged());
    }
    Ok(Content::Small(entry.blob, content.into()))
}

/// Bytes as text: what is not UTF-8 stands as `\xHH`, a backslash as `\\`.
fn printable(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        chunk.invalid().iter().for_each(|byte| _ = write!(text, "\\x{byte:02x}"));
    }
    text
}

/// The bytes that [`printable`] wrote so.
fn unprintable(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let hex = rest.strip_prefix('x').and_then(|hex| hex.get(..2));
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &rest[3..];
        } else {
            bytes.push(b'\\');
            rest = rest.strip_prefix('\\').unwrap_or(rest);
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_as_text() {
        for path in [&b"a/b"[..], b"\xff\xfe/x", b"a\\b", b"a\\x41", b"caf\xc3\xa9", b"\\", b"\\x", b"\n"] {
            assert_eq!(unprintable(&printable(path)), path, "{:?}", printable(path));
        }
    }
}
