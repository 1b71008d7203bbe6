"""foveal under the interfaces of other libraries."""
