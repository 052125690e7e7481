//! A whole run is computed again; whatever is changed in it is found and named.

mod recorded;
mod verify;
