"""How the page looks: the bar above, views, the panel of segments beside them, the line below."""

from __future__ import annotations

from typing import Any, Protocol

from trame.ui.vuetify3 import VAppLayout
from trame.widgets import client, html
from trame.widgets import vuetify3 as v

from GSMedSegLib.web.labels import labelled
from GSMedSegLib.web.saving import FORMATS
from GSMedSegLib.web.views import NAMES

STATE: dict[str, Any] = {
    "image": "",
    "image_info": "",
    "mode": "view",
    "maximised": "",
    "series": [],
    "series_uid": "",
    "segments": [],
    "segment_id": "",
    "renaming": "",
    "can_undo": False,
    "can_redo": False,
    "busy": False,
    "progress": -1,
    "message": "",
    "seconds": "",
    "engine": "",
    "saved": "",
    "error": "",
    "failed": False,
    "opening": "",
    "saving": False,
    "opacity": 0.5,
    "surface": True,
    "shown_range": [0.0, 1.0],
    "full_range": [0.0, 1.0],
    "range_step": 0.01,
    "hint": False,
    "hint_known": False,
    "smoothing_mm": 0.0,
    "overwrite": "nothing",
    "help": False,
    "files": True,
    "panel": True,
}
"""What the page shows, and how it begins."""

OF_THE_PAGE = ("opening", "saving", "renaming", "help")
"""What a page says of its own sending, saving and typing is not told to the server: it is over after a
reload, and another window of the user has its own."""

LOST = """<div class="gs-lost"><div>
<h1>The connection is lost</h1><p>The page goes on by itself when GSMedSeg answers again.</p>
</div></div>"""
"""In place of the page while nobody answers it; `gsmedseg.js` brings it back."""

MODES = (
    ("view", "mdi-cursor-default-outline", "", "Move through the slices (V)", "gs-look"),
    ("window", "mdi-contrast-circle", "", "Brightness and contrast: drag in a slice (W)", "gs-window"),
    ("foreground", "mdi-plus-circle-outline", "Object", "Click on the object (F or +)", "gs-plus"),
    ("background", "mdi-minus-circle-outline", "Background", "Click where it is wrong (B or −)", "gs-minus"),
    ("box", "mdi-vector-square", "Box", "Draw a box around the object: two corners (X)", "gs-box"),
)
"""What the mouse does: name, icon, word, explanation, class."""

KEYS = (
    (("F", "+"), "click on the object"),
    (("B", "−"), "click on the background, where the mask is wrong"),
    (("X",), "draw a box: click two opposite corners"),
    (("V",), "move only; W: brightness and contrast"),
    (("Z", "Y"), "undo and redo, clicks and mask; Ctrl+Z, too"),
    (("N",), "a new segment"),
    (("H",), "show where a next click would help"),
    (("Esc",), "cancel what is being computed; else stop clicking"),
    (("1", "2", "3", "4"), "large view, and back"),
)

OVERWRITES = (
    {"value": "nothing", "title": "Other segments stay"},
    {"value": "others", "title": "Other segments give way"},
    {"value": "overlap", "title": "Segments may overlap"},
)


class Actions(Protocol):
    """What the page can ask for; each is called when the user does something."""

    def act(self, action: str) -> None:
        """One of the keys' actions, such as "undo"."""

    def on_segment(self, what: str, segment_id: str, value: Any = None) -> None:
        """Something about a segment: choose, name, color, visible, locked, clear or remove."""

    def auto_range(self) -> None:
        """Brightness and contrast as at first."""


def build_page(server: Any, actions: Actions) -> VAppLayout:
    """Lays the page out; what it shows comes from `STATE`.

    Args:
        server: of the page.
        actions: are called by it.
    """
    server.state.trame__template_error = LOST
    with VAppLayout(server, theme="dark") as layout:
        client.Style("html, body { background: #0f1215; }")
        _bar(actions)
        _panel(actions)
        with v.VMain(style="height: 100vh"), html.Div(style="position: relative; width: 100%; height: 100%"):
            with html.Div(classes="gs-grid"):
                for name in NAMES:
                    with html.Div(
                        classes=(f"['gs-view', {{ 'gs-large': maximised === '{name}' }}]",), id=f"view-{name}"
                    ):
                        client.ServerTemplate(name=name)
            _start(actions)
        _status()
        _messages()
        _help()
    return layout


def _bar(actions: Actions) -> None:
    with v.VAppBar(density="compact", flat=True, height=48, classes="gs-bar", color="surface"):
        html.Div("GSMedSeg", classes="gs-brand")
        with html.Div("{{ image }}", classes="gs-image", v_show="image"):
            v.VTooltip("{{ image }}: {{ image_info }}", activator="parent", location="bottom")
        html.Div(classes="gs-separator", v_show="image")
        with v.VBtnToggle(
            model_value=("mode",), mandatory=True, density="compact", classes="gs-modes", v_show="image"
        ):
            for name, icon, word, tip, look in MODES:
                with v.VBtn(
                    value=name,
                    classes=look,
                    click=(actions.act, f"['{name}']"),
                    **labelled(tip),
                    id=f"mode-{name}",
                ):
                    v.VIcon(icon, start=bool(word))
                    if word:
                        html.Span(word, classes="gs-word")
                    v.VTooltip(tip, activator="parent", location="bottom")
        _button("undo", "mdi-undo", "Undo (Z)", actions, disabled="!can_undo")
        _button("redo", "mdi-redo", "Redo (Y)", actions, disabled="!can_redo")
        _button("cancel", "mdi-close-circle-outline", "Cancel (Esc)", actions, disabled="!busy")
        v.VSpacer()
        with v.VMenu(location="bottom end"):
            with (
                v.Template(v_slot_activator="{ props }"),
                v.VBtn(v_bind="props", variant="text", prepend_icon="mdi-folder-open-outline", id="open"),
            ):
                html.Span("Open")
            with v.VList(density="compact"):
                _item("mdi-file-outline", "File…", "window.gsmedseg.choose(false)")
                _item("mdi-folder-outline", "Folder with DICOM…", "window.gsmedseg.choose(true)")
                _item("mdi-flask-outline", "Example", "window.gsmedseg.open('example')")
        with v.VMenu(location="bottom end"):
            with (
                v.Template(v_slot_activator="{ props }"),
                v.VBtn(
                    v_bind="props",
                    variant="tonal",
                    color="primary",
                    prepend_icon="mdi-content-save-outline",
                    id="save",
                    loading=("saving",),
                    disabled=("!image || !segments.length",),
                ),
            ):
                html.Span("Save")
            with v.VList(density="compact"):
                for name, (title, _) in FORMATS.items():
                    _item("mdi-download-outline", title, f"window.gsmedseg.save('{name}')", id=f"save-{name}")
        with v.VBtn(icon=True, size="small", click="help = true", **labelled("Help"), id="help"):
            v.VIcon("mdi-help-circle-outline")
            v.VTooltip("Keys and help", activator="parent", location="bottom")


def _button(action: str, icon: str, tip: str, actions: Actions, disabled: str) -> None:
    with v.VBtn(
        icon=True,
        size="small",
        click=(actions.act, f"['{action}']"),
        disabled=(disabled,),
        **labelled(tip),
        id=action,
        v_show="image",
    ):
        v.VIcon(icon)
        v.VTooltip(tip, activator="parent", location="bottom")


def _item(icon: str, title: str, click: Any, **more: Any) -> None:
    v.VListItem(prepend_icon=icon, title=title, click=click, **more)


def _panel(actions: Actions) -> None:
    with v.VNavigationDrawer(
        location="right", width=264, permanent=True, classes="gs-panel", color="surface", v_if="image"
    ):
        with html.Div(classes="gs-field", v_if="series.length > 1", style="margin-top: 12px"):
            v.VSelect(
                model_value=("series_uid",),
                items=("series",),
                update_modelValue="window.gsmedseg.open('series', $event)",
                density="compact",
                variant="outlined",
                hide_details=True,
                **labelled("DICOM series"),
                id="series",
            )
        with html.H2("Segments"):
            v.VSpacer()
            with v.VBtn(
                icon=True,
                size="x-small",
                variant="text",
                click=(actions.act, "['add']"),
                **labelled("Add segment"),
                id="add",
            ):
                v.VIcon("mdi-plus", size="large")
                v.VTooltip("A new segment (N)", activator="parent", location="bottom")
        html.Div(
            "Choose + and click on what you want to segment. Where the mask is wrong, click with −.",
            classes="gs-quiet",
            v_if="!segments.length",
        )
        _segments(actions)
        html.H2("Display")
        # The two handles of a range have no names of their own.
        with html.Div(classes="gs-field", **labelled("Brightness and contrast", role="group")):
            html.Span("Brightness and contrast")
            v.VRangeSlider(
                v_model=("shown_range",),
                min=("full_range[0]",),
                max=("full_range[1]",),
                step=("range_step",),
                hide_details=True,
                density="compact",
                thumb_size=14,
                track_size=2,
                strict=True,
                id="range",
            )
        with html.Div(classes="gs-field"):
            html.Span("Opacity")
            v.VSlider(
                v_model=("opacity",),
                min=0,
                max=1,
                step=0.05,
                hide_details=True,
                density="compact",
                thumb_size=14,
                track_size=2,
                name="Opacity",
                id="opacity",
            )
        with html.Div(classes="gs-field", style="display: flex; align-items: center; gap: 8px"):
            v.VSwitch(
                v_model=("surface",),
                label="Surface",
                hide_details=True,
                density="compact",
                color="primary",
                id="surface",
            )
            v.VSpacer()
            v.VBtn("Auto contrast", size="small", variant="text", click=actions.auto_range)
        html.H2("Masks")
        with html.Div(classes="gs-field"):
            html.Span("Smoothing {{ smoothing_mm ? smoothing_mm + ' mm' : 'off' }}")
            v.VSlider(
                v_model=("smoothing_mm",),
                min=0,
                max=5,
                step=0.5,
                hide_details=True,
                density="compact",
                thumb_size=14,
                track_size=2,
                name="Smoothing in mm",
            )
        with html.Div(classes="gs-field"):
            v.VSelect(
                v_model=("overwrite",),
                items=("overwrites", list(OVERWRITES)),
                density="compact",
                variant="outlined",
                hide_details=True,
                **labelled("Where segments meet"),
            )
        with html.Div(classes="gs-field", style="display: flex; align-items: center"):
            v.VSwitch(
                v_model=("hint",),
                label="Suggest the next click",
                hide_details=True,
                density="compact",
                color="primary",
                id="hint",
            )
            v.VSpacer()
            v.VBtn(
                "Show",
                size="small",
                variant="text",
                v_show="hint && hint_known",
                click=(actions.act, "['hint']"),
                id="show-hint",
            )


def _segments(actions: Actions) -> None:
    with html.Div(
        v_for="s in segments",
        key="s.id",
        classes=("['gs-segment', { 'gs-chosen': s.id === segment_id }]",),
        click=(actions.on_segment, "['choose', s.id]"),
        raw_attrs=[
            'tabindex="0"',
            ':aria-current="s.id === segment_id"',
            """@keydown.enter.self="trigger('on_segment', ['choose', s.id])\"""",
        ],
    ):
        html.Input(
            type="color",
            value=("s.color",),
            classes="gs-swatch",
            style=("{ opacity: s.visible ? 1 : .3 }",),
            **labelled("Colour of the segment"),
            raw_attrs=["@click.stop", 'title="Another colour"'],
            change=(actions.on_segment, "['color', s.id, $event.target.value]"),
        )
        with html.Div(classes="gs-name"):
            html.Input(
                v_if="renaming === s.id",
                **labelled("Name of the segment"),
                raw_attrs=[
                    "@click.stop",
                    '@keydown.enter="$event.target.blur()"',
                    '@keydown.esc="$event.target.value = s.name; $event.target.blur()"',
                    # Once, not bound: news from the server would put the old name over what is being typed.
                    # Of `autofocus` a browser takes note once in a page; a menu that closes takes the focus.
                    '@vue:mounted="({ el }) => {'
                    ' el.value = s.name; window.setTimeout(() => el.select(), 99) }"',
                ],
                # The page itself ends the entry: the server may not know yet that it began.
                blur="trigger('on_segment', ['name', s.id, $event.target.value]); renaming = ''",
            )
            with html.Div(v_else=True, dblclick="renaming = s.id"):
                html.B("{{ s.name }}", title=("s.name",))
                clicks = "s.clicks ? ' · ' + s.clicks + (s.clicks > 1 ? ' clicks' : ' click') : ''"
                html.Small("{{ s.volume }}{{ " + clicks + " }}")
        _row_button(
            "s.visible ? 'mdi-eye-outline' : 'mdi-eye-off-outline'",
            "Show or hide",
            (actions.on_segment, "['visible', s.id, !s.visible]"),
        )
        with v.VMenu(location="bottom end"):
            with (
                v.Template(v_slot_activator="{ props }"),
                v.VBtn(
                    v_bind="props",
                    icon=True,
                    size="x-small",
                    variant="text",
                    **labelled("More"),
                    raw_attrs=["@click.stop.prevent"],
                ),
            ):
                v.VIcon("mdi-dots-vertical", size="large")
            with v.VList(density="compact"):
                _item("mdi-pencil-outline", "Rename", "renaming = s.id")
                v.VListItem(
                    prepend_icon=("s.locked ? 'mdi-lock-open-outline' : 'mdi-lock-outline'",),
                    title=("s.locked ? 'Unlock' : 'Lock'",),
                    click=(actions.on_segment, "['locked', s.id, !s.locked]"),
                )
                _item("mdi-eraser", "Clear its clicks", (actions.on_segment, "['clear', s.id]"))
                _item("mdi-delete-outline", "Delete for good", (actions.on_segment, "['remove', s.id]"))


def _row_button(icon: str, tip: str, click: Any) -> None:
    with v.VBtn(
        icon=True,
        size="x-small",
        variant="text",
        **labelled(tip),
        click_stop=click,  # and the row's own click is not meant
        __events=[("click_stop", "click.stop")],
    ):
        v.VIcon(icon=(icon,), size="large")


def _start(actions: Actions) -> None:
    with html.Div(classes="gs-start", v_if="!image"), html.Div():
        html.H1("Segment anything in a 3D image")
        html.P(
            "Open a NIfTI, NRRD or MetaImage file, or a folder or zip archive with DICOM. Or drop it here."
        )
        with html.Div(classes="gs-choices", v_if="!opening"):
            v.VBtn(
                "Open a file",
                prepend_icon="mdi-file-outline",
                color="primary",
                click="window.gsmedseg.choose(false)",
                id="start-file",
            )
            v.VBtn(
                "Open a DICOM folder",
                prepend_icon="mdi-folder-outline",
                variant="tonal",
                click="window.gsmedseg.choose(true)",
            )
            v.VBtn(
                "Try the example",
                prepend_icon="mdi-flask-outline",
                variant="tonal",
                click="window.gsmedseg.open('example')",
                id="start-example",
            )
        with html.Div(v_if="opening"):
            v.VProgressCircular(indeterminate=True, size=28, width=3, color="primary")
            html.P("{{ opening }}", style="margin-top: 12px")
        html.P(
            "The image goes to the computer that runs GSMedSeg, and nowhere else. "
            "A research tool, not a medical device.",
            classes="gs-small",
        )


def _status() -> None:
    with v.VFooter(app=True, classes="gs-status", color="surface"):
        html.Div(classes="gs-busy", v_show="(busy || opening) && progress < 0")
        v.VProgressLinear(
            model_value=("progress",),
            v_show="busy && progress >= 0",
            color="primary",
            height=4,
            rounded=True,
        )
        html.Div("{{ opening || message }}", classes="gs-message", id="message")
        html.Div("{{ seconds }}", id="seconds")
        html.Div("{{ saved }}", id="saved", style="opacity: .6")
        html.Div("{{ engine }}", id="engine", style="opacity: .6")


def _messages() -> None:
    with v.VSnackbar(
        v_model=("failed",), timeout=12000, location="bottom", color="#5c2328", multi_line=True, id="error"
    ):
        html.Span("{{ error }}")
        with v.Template(v_slot_actions=True):
            v.VBtn("Close", variant="text", click="failed = false")


def _help() -> None:
    with v.VDialog(v_model=("help",), max_width=520), v.VCard(title="Keys"):
        with v.VCardText(), html.Div(classes="gs-keys"):
            for keys, meaning in KEYS:
                with html.Div():
                    for key in keys:
                        html.Kbd(key, style="margin-right: 4px")
                html.Div(meaning)
        with v.VCardText(classes="gs-quiet"):
            html.Div(
                "Wheel: next slice. Right button: zoom. Shift and left button: move the slice. "
                "In 3D: left button turns, right button zooms. Clicks made while the engine works are not "
                "lost: they are answered together."
            )
        with v.VCardActions():
            v.VSpacer()
            v.VBtn("Close", click="help = false")
