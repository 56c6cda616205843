"""The browser app: Slicer's core shown in a page. Needs the extra `web`; nothing else imports it."""
