//! Object stores on Linux. To come.
use crate::store::{ETag, Listed, Object, Part, Store, StoreError};
use bytes::Bytes;
use std::future::Future;
#[derive(Clone, Debug)]
pub struct LinuxStore;
#[derive(Clone, Debug)]
pub struct StoreConfig;
#[derive(Clone, Debug)]
pub struct StoreConfigError;
impl Store for LinuxStore {
    async fn get(&self, _key: &str, _part: Part) -> Result<Object, StoreError> {
        unimplemented!()
    }
    async fn create(&self, _key: &str, _body: Bytes) -> Result<ETag, StoreError> {
        unimplemented!()
    }
    async fn replace(&self, _key: &str, _seen: &ETag, _body: Bytes) -> Result<ETag, StoreError> {
        unimplemented!()
    }
    async fn list(
        &self,
        _prefix: &str,
        _after: Option<&str>,
        _count_max: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        unimplemented!()
    }
    fn delete(&self, _key: &str) -> impl Future<Output = Result<(), StoreError>> {
        async { unimplemented!() }
    }
}
