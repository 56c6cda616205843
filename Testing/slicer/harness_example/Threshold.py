"""An example module for the harness: a button thresholds a volume at a clicked point's value."""

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


@parameterNodeWrapper
class Parameters:
    """What is kept in the scene."""

    volume: slicer.vtkMRMLScalarVolumeNode
    tolerance: float = 10.0
    strict: bool = False


class Threshold(ScriptedLoadableModule):
    """The module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Threshold")
        parent.categories = [_("Examples")]


class ThresholdWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self):
        """Loads the panel and connects it."""
        ScriptedLoadableModuleWidget.setup(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/Threshold.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = ThresholdLogic()
        self.parameters = Parameters(self.logic.getParameterNode())
        self.parameters.connectGui(self.ui)
        self.points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Clicks")
        self.points.CreateDefaultDisplayNodes()
        self.addObserver(self.points, self.points.PointPositionDefinedEvent, self.onPoint)
        self.ui.placeButton.connect("toggled(bool)", self.onPlace)
        self.ui.applyButton.connect("clicked()", self.onApply)

    def cleanup(self):
        """Called at the end."""
        self.removeObservers()

    def onPlace(self, down):
        """Clicks in a view place points while the button is down."""
        slicer.modules.markups.logic().SetActiveList(self.points)
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        interaction.SetPlaceModePersistence(down)
        interaction.SetCurrentInteractionMode(interaction.Place if down else interaction.ViewTransform)

    def onPoint(self, caller, event):
        """Tells how many points there are."""
        self.ui.statusLabel.text = f"{self.points.GetNumberOfDefinedControlPoints()} points"
        self.ui.applyButton.enabled = True

    def onApply(self):
        """Makes a segment of what is as bright as the last point."""
        with slicer.util.tryWithErrorDisplay(_("No segment could be made."), waitCursor=True):
            self.logic.segment(self.parameters.volume, self.points, self.parameters.tolerance)
            self.ui.segmentsTable.setSegmentationNode(self.logic.segmentation)
            self.ui.show3DButton.setSegmentationNode(self.logic.segmentation)


class ThresholdLogic(ScriptedLoadableModuleLogic):
    """The work."""

    segmentation = None

    def segment(self, volume, points, tolerance):
        """A segment of the voxels as bright as the last point."""
        if volume is None:
            raise ValueError("choose a volume first")
        array = slicer.util.arrayFromVolume(volume)
        matrix = vtk.vtkMatrix4x4()
        volume.GetRASToIJKMatrix(matrix)
        ras = points.GetNthControlPointPositionWorld(points.GetNumberOfDefinedControlPoints() - 1)
        i, j, k = (round(x) for x in matrix.MultiplyPoint((*ras, 1.0))[:3])
        mask = abs(array - array[k, j, i]) <= tolerance
        self.segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
        self.segmentation.CreateDefaultDisplayNodes()
        self.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment = self.segmentation.GetSegmentation().AddEmptySegment("object", "Object", (0.9, 0.5, 0.2))
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            mask.astype("uint8"), self.segmentation, segment, volume
        )
