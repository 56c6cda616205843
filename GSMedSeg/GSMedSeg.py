"""GSMedSeg in 3D Slicer: click on an organ, a tumour or a cell, and its mask is there."""

from __future__ import annotations

import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

try:
    import GSMedSegLib
except ModuleNotFoundError:  # a source checkout: the library lies beside the module's folder
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import GSMedSegLib

from GSMedSegUI.controller import Controller
from GSMedSegUI.panel import Panel
from GSMedSegUI.sample import register_sample_data


class GSMedSeg(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("GSMedSeg")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Markups", "Volumes"]
        parent.contributors = ["GSMedSeg contributors"]
        parent.helpText = _(
            "Segment anything in a 3D image from a few clicks. Choose an image, press the green plus and "
            "click on the object; where the mask is wrong, click again. The engine runs in a process of its "
            "own, on this computer or on a server."
        )
        parent.acknowledgementText = _(
            "The network is VISTA3D (MONAI). Version {version}. For research, not for clinical use."
        ).format(version=GSMedSegLib.__version__)
        slicer.app.connect("startupCompleted()", register_sample_data)


class GSMedSegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None

    def setup(self):
        """Builds the panel; called when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        ui = slicer.util.loadUI(self.resourcePath("UI/GSMedSeg.ui"))
        self.layout.addWidget(ui)
        ui.setMRMLScene(slicer.mrmlScene)
        self.logic = GSMedSegLogic()
        self.panel = Panel(ui, self.logic, self.resourcePath)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneChanged)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneChanged)
        slicer.app.connect("aboutToQuit()", self.cleanup)

    def cleanup(self):
        """Ends the engine; called when Slicer closes or the module is reloaded."""
        self.removeObservers()
        if self.panel is not None:
            self.panel.close()
            self.panel = None
        if self.logic is not None:
            self.logic.close()
            self.logic = None

    def enter(self):
        """Called each time the module is shown."""
        if self.panel is not None:
            self.panel.enter()

    def exit(self):
        """Called each time another module is shown: no shortcut and no place mode outlives the panel."""
        if self.panel is not None:
            self.panel.leave()

    def onSceneStartClose(self, caller, event):
        """Lets go of the nodes that are about to be removed."""
        if self.panel is not None:
            self.panel.scene_closing()

    def onSceneStartImport(self, caller, event):
        """Lets go of the parameters until all nodes are there."""
        if self.panel is not None:
            self.panel.scene_importing()

    def onSceneChanged(self, caller, event):
        """Takes up what a loaded scene holds."""
        if self.panel is not None:
            self.panel.scene_changed()


class GSMedSegLogic(ScriptedLoadableModuleLogic, Controller):
    """What the panel does, for scripts: the verbs are `Controller`'s."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        Controller.__init__(self, slicer.mrmlScene)


class GSMedSegTest(ScriptedLoadableModuleTest):
    """The module's own test: a real engine segments a made-up image."""

    def setUp(self):
        """An empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Clicks, undo and redo on the sample image."""
        self.setUp()
        self.test_click_undo_redo()

    def test_click_undo_redo(self):
        """A click gives a mask, undo takes it away, and redo brings the same one back."""
        from GSMedSegUI.sample import add_sample_volume

        self.delayDisplay(_("A made-up image, and an engine for it"))
        logic = GSMedSegLogic()
        try:
            volume, inside_ras = add_sample_volume()
            segmentation = logic.new_segmentation(volume)
            logic.select(volume, segmentation)
            segment = logic.add_segment(_("Object"))
            logic.click(inside_ras, True)
            logic.wait()
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment, volume)
            self.assertGreater(int(mask.sum()), 0)
            logic.undo()
            logic.wait()
            empty = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment, volume)
            self.assertEqual(int(empty.sum()), 0)
            logic.redo()
            logic.wait()
            again = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment, volume)
            self.assertTrue((again == mask).all())
        finally:
            logic.close()
        self.delayDisplay(_("Test passed"))
