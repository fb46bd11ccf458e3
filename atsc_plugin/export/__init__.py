"""A deployed student in other formats. Every file is reloaded and compared with the student before it has its name."""
