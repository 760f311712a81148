"""Pictures that do not fit into memory: read, and written, some rows at a time.

`reading` gives a file as a `strips.StripSource`: by libvips, which reads some kinds of files from
their top to their bottom, or out of memory where the input fits. `writing` takes strips and makes
PNG, TIFF, JPEG and WebP of them, by the same encoders as `pictures`, and so with the same pixels
and tags.
"""
