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
use velo_object::{BlobId, Entry, EntryKind, ObjectId, ObjectKind, PIECE_BYTES, Tree};
use velo_socket::{ErrorCode, JobState, check_current};

use super::api::meaning;
use super::range::{Wanted, wanted};
use super::{ApiError, App};
use crate::client::{TreeEntryView, TreeView};
use crate::origin::{MAX_TABLE_BYTES, read};
use crate::velod::VelodError;

/// How long a read waits for the beginning of what it wants, from somebody who said that he has it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits for somebody to say so.
const NOBODY: Duration = Duration::from_secs(4);
/// How long a read that goes on waits for its next piece.
const NEXT_PIECE: Duration = Duration::from_secs(60);
/// The largest tree that is listed or looked into, in bytes of its table.
const MAX_LISTED_BYTES: u64 = if MAX_TABLE_BYTES < 256 << 20 { MAX_TABLE_BYTES } else { 256 << 20 };

/// A blob that can be read, whole or in part.
struct Opened {
    file: Arc<std::fs::File>,
    offset: u64,
    size: u64,
    complete: bool,
}

/// What a body is made of.
enum Content {
    /// A blob in the store.
    Stored(BlobId, Opened),
    /// A small content, read from its pack and checked.
    Small(BlobId, Bytes),
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

/// Opens `blob`; if it is not here, pulls `root` and waits until the blob's size is known.
async fn open(app: &App, blob: BlobId, root: ObjectId, tables_only: bool) -> Result<Opened, ApiError> {
    let began = Instant::now();
    let mut job = None;
    loop {
        match app.control.velod.open(blob, true).await {
            Ok((file, offset, size, complete)) => {
                // A part that nobody gets any more is got on.
                if !complete && job.is_none() && !arriving(app, root.blob).await? {
                    app.control.pull(vec![root], tables_only, 0).await?;
                }
                return Ok(Opened { file: Arc::new(file.into()), offset, size, complete });
            }
            Err(VelodError::Refused(error)) if error.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        match job {
            None => job = Some(app.control.pull(vec![root], tables_only, 0).await?),
            Some(job) => match app.control.job(job).await?.state {
                JobState::Failed(error) => return Err(VelodError::Refused(error).into()),
                JobState::Cancelled => {
                    return Err(ApiError::new(StatusCode::CONFLICT, "cancelled", "the pull was cancelled"));
                }
                JobState::Running | JobState::Waiting | JobState::Complete => {}
            },
        }
        let control = &app.control;
        let coming = job.is_some_and(|job| !control.pulls.sources(job).is_empty())
            || control.origin.as_ref().is_some_and(|origin| origin.is_reading());
        let patience = if coming { PATIENCE } else { NOBODY };
        if began.elapsed() > patience {
            if let Some(job) = job {
                let _ = control.velod.cancel(job).await;
            }
            let seconds = patience.as_secs();
            return Err(ApiError::not_found(format!(
                "{root}: no member and no origin gave it within {seconds} s"
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn arriving(app: &App, root: BlobId) -> Result<bool, ApiError> {
    let jobs = app.control.velod.jobs().await?;
    Ok(jobs.iter().any(|job| {
        matches!(job.state, JobState::Running | JobState::Waiting)
            && job.roots.iter().any(|other| other.blob == root)
    }))
}

/// Sends what the headers ask for of an opened blob.
async fn send(app: &App, method: &Method, headers: &HeaderMap, content: Content) -> Response {
    let (blob, size) = match &content {
        Content::Stored(blob, opened) => (*blob, opened.size),
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
        Content::Stored(blob, opened) => stream(app, blob, opened, bytes),
        // Both ends are at most the size of a small content.
        Content::Small(_, content) => Body::from(content.slice(bytes.start as usize..bytes.end as usize)),
    };
    response
}

/// A range of a stored blob, piece by piece as they are there.
fn stream(app: &App, blob: BlobId, opened: Opened, bytes: Range<u64>) -> Body {
    let velod = app.control.velod.clone();
    let chunks = futures_util::stream::try_unfold(bytes.start, move |at| {
        let (velod, file, end) = (velod.clone(), Arc::clone(&opened.file), bytes.end);
        let (offset, complete) = (opened.offset, opened.complete);
        async move {
            if at >= end {
                return Ok(None);
            }
            // Up to the end of a piece, so that a read waits for no more than it needs.
            let next = end.min((at / PIECE_BYTES + 1) * PIECE_BYTES);
            if !complete {
                velod.wait(blob, at..next, NEXT_PIECE).await.map_err(io::Error::other)?;
                check_current(&file, &blob).map_err(io::Error::other)?;
            }
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
    let opened = open(&app, id.blob, id, true).await?;
    Ok(send(&app, &method, &headers, Content::Stored(id.blob, opened)).await)
}

/// The table of a tree, which is pulled if it is not here.
async fn table(app: &App, id: ObjectId) -> Result<Tree<Vec<u8>>, ApiError> {
    let opened = open(app, id.blob, id, true).await?;
    if opened.size > MAX_LISTED_BYTES {
        return Err(ApiError::invalid(format!(
            "the table of {id} has {} bytes: read it as a blob",
            opened.size
        )));
    }
    if !opened.complete {
        app.control.velod.wait(id.blob, 0..opened.size, NEXT_PIECE).await?;
        // The last piece is verified before the blob is complete as a whole.
        let until = Instant::now() + PATIENCE;
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
            let pack = tree.packs().nth(packed.pack).map(|pack| pack.blob).ok_or_else(|| there(&path))?;
            small(&app, id, pack, packed.offset_bytes, entry).await?
        }
        None => Content::Stored(entry.blob, open(&app, entry.blob, id, false).await?),
    };
    Ok(send(&app, &method, &headers, content).await)
}

/// A small content from its pack, of which no more than this needs to have come. It is checked by its own hash: a tree may name any pack.
async fn small(
    app: &App,
    tree: ObjectId,
    pack: BlobId,
    at: u64,
    entry: Entry<'_>,
) -> Result<Content, ApiError> {
    let opened = open(app, pack, tree, false).await?;
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
    if !opened.complete && !range.is_empty() {
        app.control.velod.wait(pack, range, NEXT_PIECE).await?;
        check_current(&opened.file, &pack).map_err(VelodError::Refused)?;
    }
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
