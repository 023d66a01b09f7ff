//! Waiting for an operation of the server, and showing how far it is.

use std::time::Duration;

use hyper::Method;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::client::{Client, Said, operation_path, within};
use super::{Failure, output};
use crate::control::{OperationDocument, OperationState};

/// Between two looks at an operation.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Asks for an operation, and waits until it has ended, unless nobody wants that.
pub(super) async fn run(
    client: &Client<'_>,
    (method, path): (Method, &str),
    body: String,
    waits: bool,
) -> Result<OperationDocument, Failure> {
    let said: Said<OperationDocument> = client.change(method, path, body).await?;
    let mut operation = said.or_refused()?;
    if !waits {
        return Ok(operation);
    }
    let bar = progress(operation.total);
    while operation.state == OperationState::Running {
        bar.set_position(operation.done);
        bar.set_message(operation.at.clone());
        // Nothing else runs meanwhile: it waits for time alone.
        within(LOOK_EVERY, std::future::pending::<()>()).await;
        let said: Said<OperationDocument> = client.look(&operation_path(&operation.id)).await?;
        operation = said.or_refused()?;
    }
    bar.finish_and_clear();
    Ok(operation)
}

/// Of so many exports; or, if that is 0, of objects of which nobody knows how many there are.
fn progress(exports: u64) -> ProgressBar {
    let target = if output::is_watched() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let (template, len) = match exports {
        0 => ("{spinner} {pos} objects deleted, {elapsed}: {msg}", None),
        exports => (
            "{spinner} {pos} of {len} exports, {elapsed}: {msg}",
            Some(exports),
        ),
    };
    let style = ProgressStyle::with_template(template).expect("a template of known fields");
    let bar = ProgressBar::with_draw_target(len, target).with_style(style);
    bar.enable_steady_tick(LOOK_EVERY);
    bar
}
