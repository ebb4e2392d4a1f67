//! Answers that are not 2xx: a status, a code for programs, and words for people.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use velo_socket::ErrorCode;

use crate::authority::AuthorityError;
use crate::client::{ErrorBody, ErrorView};
use crate::directory::ResolveError;
use crate::names::ChangeError;
use crate::origin::OriginError;
use crate::refs::RefError;
use crate::velod::VelodError;

/// An error on its way to the caller.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string() }
    }

    pub(crate) fn invalid(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub(crate) fn not_found(message: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: ErrorView { code: self.code.to_owned(), message: self.message } };
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The status and the text for a code of velod.
pub(crate) fn code(code: ErrorCode) -> (StatusCode, &'static str) {
    match code {
        ErrorCode::NotFound => (StatusCode::NOT_FOUND, "not_found"),
        ErrorCode::Ambiguous => (StatusCode::CONFLICT, "ambiguous"),
        ErrorCode::Invalid => (StatusCode::BAD_REQUEST, "invalid"),
        ErrorCode::Mismatch => (StatusCode::UNPROCESSABLE_ENTITY, "mismatch"),
        ErrorCode::Full => (StatusCode::INSUFFICIENT_STORAGE, "full"),
        ErrorCode::Conflict => (StatusCode::CONFLICT, "conflict"),
        ErrorCode::InUse => (StatusCode::CONFLICT, "in_use"),
        ErrorCode::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "timed_out"),
        ErrorCode::Unreachable => (StatusCode::BAD_GATEWAY, "unreachable"),
        ErrorCode::Denied => (StatusCode::FORBIDDEN, "denied"),
        ErrorCode::Limit => (StatusCode::TOO_MANY_REQUESTS, "limit"),
        ErrorCode::Cancelled => (StatusCode::CONFLICT, "cancelled"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
    }
}

impl From<VelodError> for ApiError {
    fn from(error: VelodError) -> Self {
        let (status, code) = match &error {
            VelodError::Refused(refused) => code(refused.code),
            VelodError::Down(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            VelodError::Unexpected(_) => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
        };
        Self::new(status, code, error)
    }
}

impl From<ResolveError> for ApiError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Unknown(_) => Self::not_found(error),
            ResolveError::Ambiguous { .. } => Self::new(StatusCode::CONFLICT, "ambiguous", error),
            ResolveError::Velod(error) => error.into(),
        }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        let (status, code) = match &error {
            ChangeError::Velod(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ChangeError::Record(_) => (StatusCode::BAD_GATEWAY, "mismatch"),
            ChangeError::Ref(RefError::Conflict { .. }) => (StatusCode::CONFLICT, "conflict"),
            ChangeError::Ref(RefError::Absent(_)) => (StatusCode::NOT_FOUND, "not_found"),
            ChangeError::Ref(RefError::Full | RefError::Spent(_)) => (StatusCode::TOO_MANY_REQUESTS, "limit"),
            ChangeError::Ref(RefError::Writer { .. }) => (StatusCode::BAD_GATEWAY, "unreachable"),
        };
        Self::new(status, code, error)
    }
}

impl From<AuthorityError> for ApiError {
    fn from(error: AuthorityError) -> Self {
        let (status, code) = match &error {
            AuthorityError::Absent(_) | AuthorityError::Refused(_) => (StatusCode::CONFLICT, "denied"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
        };
        Self::new(status, code, error)
    }
}

impl From<OriginError> for ApiError {
    fn from(error: OriginError) -> Self {
        let (status, code) = match error {
            OriginError::Velod(error) => return error.into(),
            OriginError::Incomplete(_) => (StatusCode::CONFLICT, "not_found"),
            OriginError::Tree { .. } => (StatusCode::BAD_REQUEST, "invalid"),
            OriginError::Mismatch(_) => (StatusCode::UNPROCESSABLE_ENTITY, "mismatch"),
            _ => (StatusCode::BAD_GATEWAY, "io"),
        };
        Self::new(status, code, error)
    }
}
