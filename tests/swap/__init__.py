"""Public projects that use Flask-Mail, run on amail_flask with a few lines of them changed."""
