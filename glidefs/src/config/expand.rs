//! `${NAME}` in string values.

use super::environment::Environment;

/// Why a value cannot be expanded: what is wrong, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExpandError {
    pub(super) wrong: String,
    pub(super) remedy: String,
}

/// Replaces each `${NAME}` by the variable and each `$$` by `$`. A lone `$` is refused: whoever
/// wrote `$HOME` meant something, and a folder of that name is not it. What a variable holds is
/// taken as it is, without a second round.
pub(super) fn expand(text: &str, environment: &Environment) -> Result<String, ExpandError> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (name, after) = after.split_once('}').ok_or_else(|| ExpandError {
                wrong: "`${` without a closing `}`".into(),
                remedy: "write `${NAME}`, or `$$` for a plain dollar sign".into(),
            })?;
            expanded.push_str(variable(name, environment)?);
            rest = after;
        } else {
            return Err(ExpandError {
                wrong: "a `$` that begins no `${NAME}`".into(),
                remedy: "write `${NAME}` for a variable, or `$$` for a plain dollar sign".into(),
            });
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn variable<'a>(name: &str, environment: &'a Environment) -> Result<&'a str, ExpandError> {
    let well_formed = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !well_formed {
        return Err(ExpandError {
            wrong: "`${…}` around something that is no variable name".into(),
            remedy: "use letters, digits and `_`, or `$$` for a plain dollar sign".into(),
        });
    }
    environment.get(name).ok_or_else(|| ExpandError {
        wrong: format!("the environment variable {name} is not set"),
        remedy: format!("set it before the start (`export {name}=…`) or write the value here"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment() -> Environment {
        [("PASS", "s3cret"), ("DOLLAR", "${PASS}"), ("EMPTY", "")]
            .into_iter()
            .collect()
    }

    #[test]
    fn variables_and_escapes_are_replaced() {
        let expanded = |text| expand(text, &environment());
        assert_eq!(expanded("plain"), Ok("plain".into()));
        assert_eq!(expanded("${PASS}"), Ok("s3cret".into()));
        assert_eq!(expanded("a${PASS}b${PASS}"), Ok("as3cretbs3cret".into()));
        assert_eq!(expanded("$$"), Ok("$".into()));
        assert_eq!(expanded("$${PASS}"), Ok("${PASS}".into()));
        assert_eq!(expanded("${DOLLAR}"), Ok("${PASS}".into()), "one round");
    }

    #[test]
    fn what_cannot_be_expanded_is_refused() {
        let wrong = |text| expand(text, &environment()).expect_err(text).wrong;
        assert!(wrong("${ABSENT}").contains("ABSENT is not set"));
        assert!(wrong("${EMPTY}").contains("EMPTY is not set"));
        assert!(wrong("${PASS").contains("closing"));
        assert!(wrong("$PASS").contains("begins no"));
        assert!(wrong("end$").contains("begins no"));
        assert!(wrong("${}").contains("no variable name"));
        assert!(wrong("${A B}").contains("no variable name"));
    }

    proptest! {
        #[test]
        fn doubled_dollars_give_any_text(text in ".*") {
            let escaped = text.replace('$', "$$");
            prop_assert_eq!(expand(&escaped, &environment()), Ok(text));
        }

        #[test]
        fn no_text_panics(text in "[${}A-Z_ü]*") {
            let _outcome = expand(&text, &environment());
        }
    }
}
