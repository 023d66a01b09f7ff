use super::stage::Stage;
pub(super) async fn play(_stage: &Stage) -> anyhow::Result<()> {
    Ok(())
}
