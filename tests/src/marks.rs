//! Parts of a document that a program writes: what lies between `<!-- kind -->` and `<!-- end of kind -->`.

use std::path::Path;

use anyhow::{Context, Result};

/// Whether a document has the marks of this kind. To be asked before hours are spent on what goes between them.
pub fn check(path: &Path, kind: &str) -> Result<()> {
    split(&read(path)?, kind, path).map(drop)
}

/// Replaces what lies between the marks of this kind.
#[expect(clippy::disallowed_methods, reason = "a document is a real file")]
pub fn put(path: &Path, kind: &str, text: &str) -> Result<()> {
    let old = read(path)?;
    let (head, tail) = split(&old, kind, path)?;
    let new = format!("{head}<!-- {kind} -->\n\n{text}\n<!-- end of {kind} -->{tail}");
    std::fs::write(path, new).with_context(|| format!("writing {}", path.display()))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// What is before the first mark, and behind the last.
fn split<'a>(text: &'a str, kind: &str, path: &Path) -> Result<(&'a str, &'a str)> {
    let (begin, end) = (
        format!("<!-- {kind} -->"),
        format!("<!-- end of {kind} -->"),
    );
    let missing = || format!("{} has no line {begin} or {end}", path.display());
    let (head, rest) = text.split_once(&begin).with_context(missing)?;
    let (_, tail) = rest.split_once(&end).with_context(missing)?;
    Ok((head, tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a document is a real file")]
    fn what_is_between_marks_is_replaced_and_nothing_else() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("page.md");
        std::fs::write(&path, "a <!-- x -->old<!-- end of x --> b")?;
        check(&path, "x")?;
        put(&path, "x", "new")?;
        put(&path, "x", "newer")?;
        let found = std::fs::read_to_string(&path)?;
        assert_eq!(found, "a <!-- x -->\n\nnewer\n<!-- end of x --> b");
        assert!(check(&path, "y").is_err());
        Ok(())
    }
}
