"""Files in stores that fsspec reaches: S3, Google Cloud, Azure, SFTP … as inputs and as outputs."""
