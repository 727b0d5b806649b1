"""The rungs of the ladder, a file each; every one fills a `Sheet`."""
