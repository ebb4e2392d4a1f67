//! Paths as trees name them: relative, of checked components, compared so that a directory's entries stand together.

use std::cmp::Ordering;

/// The longest path in a tree, in bytes.
pub const MAX_PATH_BYTES: usize = 4096;
/// The longest component of a path, in bytes.
pub const MAX_COMPONENT_BYTES: usize = 255;

/// Why a path cannot stand in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// No bytes at all.
    #[error("it is empty")]
    Empty,
    /// It begins with `/`.
    #[error("it is absolute")]
    Absolute,
    /// It ends with `/`.
    #[error("it ends with a slash")]
    TrailingSlash,
    /// Two slashes in a row.
    #[error("it has an empty component")]
    EmptyComponent,
    /// A component `.` or `..`.
    #[error("it has a component `.` or `..`")]
    Dots,
    /// A zero byte.
    #[error("it has a zero byte")]
    Nul,
    /// A component of this many bytes.
    #[error("it has a component of {0} bytes; {MAX_COMPONENT_BYTES} is the limit")]
    ComponentTooLong(usize),
    /// This many bytes in all.
    #[error("it has {0} bytes; {MAX_PATH_BYTES} is the limit")]
    TooLong(usize),
}

/// Checks that `path` may stand in a tree: relative, no component empty, `.`, `..` or over
/// [`MAX_COMPONENT_BYTES`], no zero byte, at most [`MAX_PATH_BYTES`].
///
/// # Errors
/// [`PathError`].
pub fn check_path(path: &[u8]) -> Result<(), PathError> {
    match path {
        [] => return Err(PathError::Empty),
        [b'/', ..] => return Err(PathError::Absolute),
        [.., b'/'] => return Err(PathError::TrailingSlash),
        _ if path.len() > MAX_PATH_BYTES => return Err(PathError::TooLong(path.len())),
        _ => {}
    }
    for component in path.split(|&byte| byte == b'/') {
        match component {
            [] => return Err(PathError::EmptyComponent),
            b"." | b".." => return Err(PathError::Dots),
            _ if component.len() > MAX_COMPONENT_BYTES => {
                return Err(PathError::ComponentTooLong(component.len()));
            }
            _ if component.contains(&0) => return Err(PathError::Nul),
            _ => {}
        }
    }
    Ok(())
}

/// The order of a tree's entries: bytewise, where `/` comes before every other byte.
///
/// So a path comes before all that lies under it, and all of that comes before the path's next sibling:
/// `a`, `a/b`, `a-b`. It is the order of a depth-first walk that sorts each directory by name.
pub fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
    match a.iter().zip(b).find(|(x, y)| x != y) {
        Some((&x, &y)) => rank(x).cmp(&rank(y)),
        None => a.len().cmp(&b.len()),
    }
}

/// Whether `path` lies under the directory `ancestor`; everything lies under the empty path.
pub fn is_under(path: &[u8], ancestor: &[u8]) -> bool {
    ancestor.is_empty() || path.strip_prefix(ancestor).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// `path` for people: what is UTF-8 as it is, control characters and other bytes escaped, so that a hostile name
/// cannot write to a terminal.
pub fn path_text(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() { text.extend(char.escape_default()) } else { text.push(char) }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_a_path_follows_it_at_once() {
        let sorted: [&[u8]; 8] = [b"a", b"a/b", b"a/b/c", b"a/c", b"a\x01", b"a-b", b"a0", b"b"];
        assert!(sorted.is_sorted_by(|a, b| path_order(a, b) == Ordering::Less));
        assert_eq!(path_order(b"a/b", b"a/b"), Ordering::Equal);
        assert!(
            is_under(b"a/b", b"a") && is_under(b"a", b"") && !is_under(b"a-b", b"a") && !is_under(b"a", b"a")
        );
    }

    #[test]
    fn paths_that_cannot_stand_in_a_tree() {
        let long = [b'x'; MAX_COMPONENT_BYTES + 1];
        let deep = b"d/".repeat(MAX_PATH_BYTES / 2);
        for (path, why) in [
            (b"".as_slice(), PathError::Empty),
            (b"/", PathError::Absolute),
            (b"/etc", PathError::Absolute),
            (b"a/", PathError::TrailingSlash),
            (b"a//b", PathError::EmptyComponent),
            (b".", PathError::Dots),
            (b"..", PathError::Dots),
            (b"a/../b", PathError::Dots),
            (b"./a", PathError::Dots),
            (b"a/b\0c", PathError::Nul),
            (&long, PathError::ComponentTooLong(MAX_COMPONENT_BYTES + 1)),
            (&[&deep[..], b"x"].concat(), PathError::TooLong(MAX_PATH_BYTES + 1)),
        ] {
            assert_eq!(check_path(path), Err(why), "{}", path_text(path));
        }
        for path in
            [b"a".as_slice(), b"...", b"..a/.b", b"\xff\xfe/\n", &long[1..], &deep[..MAX_PATH_BYTES - 1]]
        {
            assert_eq!(check_path(path), Ok(()), "{}", path_text(path));
        }
    }

    #[test]
    fn hostile_names_are_shown_without_control_characters() {
        assert_eq!(path_text(b"caf\xc3\xa9\x1b[2J\xff\n"), "caf\u{e9}\\u{1b}[2J\\xff\\n");
    }
}
