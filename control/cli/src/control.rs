//! The HTTP client for this node's velo-control.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body};
use velo_config::Paths;
use velo_control::client::{ControlJson, ErrorBody};

use crate::exit::Failure;

/// The most bytes of an answer.
const ANSWER_BYTES: u64 = 256 << 20;
/// How long an ordinary question may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Copying to the origin, or telling all members, takes as long as it takes; this only ends what hangs for good.
const LONG_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// A running velo-control.
#[derive(Debug, Clone)]
pub struct Control {
    agent: Agent,
    base: String,
    authorization: String,
}

impl Control {
    /// The one that runs for this data directory.
    pub fn find(paths: &Paths) -> anyhow::Result<Self> {
        let not_running = || {
            let dir = paths.data_dir().display();
            Failure::unreachable(format!(
                "velo-control does not run for {dir}: start the node with `velo up`"
            ))
        };
        let ready = std::fs::read(paths.control_ready()).map_err(|_| not_running())?;
        let ready: ControlJson = serde_json::from_slice(&ready).map_err(|_| not_running())?;
        let path = paths.http_token();
        let token = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => not_running(),
            _ => anyhow::Error::new(error).context(format!(
                "cannot read {}: the owner of the node and its group may use it",
                path.display()
            )),
        })?;
        // No proxy, whatever the environment says: this is a program on this host.
        let agent = Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        Ok(Self {
            agent,
            base: format!("http://{}", ready.http),
            authorization: format!("Bearer {}", token.trim()),
        })
    }

    /// `GET`.
    pub fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<T> {
        let request = self.agent.get(format!("{}{path}", self.base)).query_pairs(query.iter().copied());
        let request = request.header("Authorization", &self.authorization);
        self.read(path, request.config().timeout_global(Some(TIMEOUT)).build().call())
    }

    /// `DELETE`.
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let request = self.agent.delete(format!("{}{path}", self.base));
        let request = request.header("Authorization", &self.authorization);
        self.read(path, request.config().timeout_global(Some(TIMEOUT)).build().call())
    }

    /// `PUT` with a body.
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.send(self.agent.put(format!("{}{path}", self.base)), path, body, TIMEOUT)
    }

    /// `POST` with a body.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.send(self.agent.post(format!("{}{path}", self.base)), path, body, TIMEOUT)
    }

    /// `POST` for what takes as long as it takes.
    pub fn post_long<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.send(self.agent.post(format!("{}{path}", self.base)), path, body, LONG_TIMEOUT)
    }

    fn send<T: DeserializeOwned>(
        &self,
        request: ureq::RequestBuilder<ureq::typestate::WithBody>,
        path: &str,
        body: &impl Serialize,
        timeout: Duration,
    ) -> anyhow::Result<T> {
        let request = request
            .header("Authorization", &self.authorization)
            .header("Content-Type", "application/json")
            .config()
            .timeout_global(Some(timeout))
            .build();
        self.read(path, request.send(serde_json::to_vec(body)?))
    }

    fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> anyhow::Result<T> {
        let mut answer = answer.map_err(|error| {
            Failure::unreachable(format!(
                "velo-control at {} does not answer: {error}; `velo up` starts it again, or its log says why it cannot",
                self.base
            ))
        })?;
        let status = answer.status();
        let bytes = answer.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec();
        let bytes = bytes.map_err(|error| {
            Failure::unreachable(format!("velo-control at {} broke off: {error}", self.base))
        })?;
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .with_context(|| format!("velo-control gave an answer to {path} that cannot be read"));
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Err(Failure::named(&body.error.code, body.error.message)),
            Err(_) => Err(anyhow::anyhow!("velo-control answered {path} with status {status}")),
        }
    }
}

/// A name or id as part of a URL's path: slashes and colons stay.
pub fn path_of(text: &str) -> String {
    let mut path = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' => {
                path.push(char::from(byte));
            }
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_in_urls() {
        assert_eq!(super::path_of("models/llama-3:prod"), "models/llama-3:prod");
        assert_eq!(super::path_of("a b?c#d%é"), "a%20b%3Fc%23d%25%C3%A9");
    }
}
